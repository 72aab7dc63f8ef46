"""The transformers Trainer as the loop under a session: it steps, clips and accumulates, no more.

Its own evaluation, checkpoints, logs, schedules and FLOP estimates are off; the session has them.
A step is one update of the weights, from `accumulate` batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from memarch.studies.training import optimizers
from memarch.studies.training.session import Session, seed_of

ENDLESS = 2**40


class Batches(IterableDataset[dict[str, Tensor]]):
    """The session's batches, collated already."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.session.draw()


class Schedule(torch.optim.lr_scheduler.LRScheduler):
    """Each group's rate follows from what is spent: nothing to remember, nothing to restore."""

    def __init__(self, optimizer: torch.optim.Optimizer, session: Session) -> None:
        self.session = session
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the next step."""
        return [self.session.learning_rate(group["part"]) for group in self.optimizer.param_groups]


class Hooks(TrainerCallback):
    """Tells the session of each step, and the Trainer when to end."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Everything is built."""
        self.session.begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights have changed, the learning rate not yet."""
        self.session.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step is done."""
        control.should_training_stop = self.session.after_step()


class SessionTrainer(Trainer):
    """A Trainer whose batches, model, optimizer and rates are a session's."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._to_come = 0  # batches of this step
        settings = session.settings
        arguments = TrainingArguments(
            output_dir=str(session.checkpoints),
            max_steps=ENDLESS,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulate,
            max_grad_norm=settings.clip or 0.0,
            seed=seed_of(session.spec, "model"),
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to="none",
            use_cpu=session.device.type == "cpu",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one device; never DataParallel
        super().__init__(model=session.model, args=arguments, callbacks=[Hooks(session)])

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One batch an item, fetched when it is used: the position in the data is the session's."""
        # A generator of its own: making the iterator would otherwise draw from the global one.
        return DataLoader(
            Batches(self.session),
            batch_size=None,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of a step; of several, also how many labels they score together."""
        team = self.session.team
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        self.session.count(batches)
        self._to_come = num_batches
        if num_batches == 1 and team.size == 1:
            return batches, None
        scored = torch.stack([(batch["labels"][:, 1:] != -100).sum() for batch in batches])
        # Gradients are averaged over the team: each counts its part of all labels, times its size.
        return [team.rows(batch) for batch in batches], scored.sum().to(device) / team.size

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Forward and backward of one batch, by the model of the stage."""
        loss = self.compute_loss(model, self._on_device(inputs), False, num_items_in_batch)
        self.accelerator.backward(loss)
        self.session.loss_sum += loss.detach()
        self._to_come -= 1
        if self._to_come == 0:
            self.session.team.average_gradients(self.session.model.parameters())
            self.session.team.average(self.session.loss_sum)
        return loss.detach()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This batch's part of the step's mean loss."""
        session, parts = self.session, self.current_gradient_accumulation_steps
        stage = session.stage
        precise = session.settings.precision != "bf16"
        with torch.autocast(session.device.type, torch.bfloat16, enabled=not precise):
            outputs = stage.model(
                **inputs, truncate=stage.train.truncate, num_items_in_batch=num_items_in_batch
            )
        loss = outputs.loss
        if parts > 1 and outputs.auxiliary_loss is not None:
            # The labels' loss is divided by all that the step scores; the auxiliary one is not.
            loss = loss - outputs.auxiliary_loss * (1 - 1 / parts)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the session's groups, as far as the checkpoint has brought it."""
        session = self.session
        if session.optimizer is None:
            session.optimizer = optimizers.adamw(
                optimizers.parameter_groups(session.model, session.settings.weight_decay),
                session.settings.betas,
            )
            if session.checkpoint is not None:
                session.optimizer.load_state_dict(session.checkpoint["optimizer"])
        self.optimizer = session.optimizer
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Rates that follow the budget."""
        self.lr_scheduler = Schedule(self.optimizer, self.session)
        return self.lr_scheduler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: the session counts, and the estimate walks over all parameters at each step."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: the session reports."""

    def _on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        device = self.session.device
        return {name: value.to(device) for name, value in inputs.items()}


def _as_it_is(batch: Any) -> Any:
    return batch
