"""A built model: its baselines equal the bare backbone, it writes, generates, saves and loads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from memarch.arch.build import build_model
from memarch.arch.model import MemarchModel
from memarch.arch.state import MemoryState
from memarch.components.errors import SpecError

VOCAB = 23
MEMORIES: dict[str, dict[str, Any]] = {
    "none": {},
    "rmt": {"m": {"type": "rmt", "num_tokens": 2}},
    "gradmem": {"m": {"type": "gradmem", "num_tokens": 2, "write": {"steps": 2, "step_size": 5.0}}},
    "gradmem per sample": {
        "m": {
            "type": "gradmem",
            "num_tokens": 2,
            "write": {"projection": "per_sample", "control_tokens": 1},
        }
    },
    "armt": {"m": {"type": "armt", "d_mem": 4, "num_tokens": 2}},
    "deltanet": {"m": {"type": "deltanet", "heads": 2}},
    "gated_deltanet": {"m": {"type": "gated_deltanet", "heads": 2, "beside": True}},
    "full_attention": {"m": {"type": "full_attention"}},
    "sliding_window": {"m": {"type": "sliding_window", "window": 6}},
    "nested": {
        "g": {"type": "gradmem", "num_tokens": 2, "write": {"step_size": 5.0}},
        "r": {"type": "rmt", "num_tokens": 1},
        "a": {"type": "armt", "d_mem": 4, "num_tokens": 2, "layers": [1]},
    },
}


def build(
    memory: dict[str, Any], family: str = "llama", length: int = 4, **backbone: Any
) -> MemarchModel:
    given = {"type": family, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    spec = {"backbone": given | backbone, "memory": memory, "segment_length": length}
    model = build_model(spec, vocab_size=VOCAB, seed=3).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise)
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def bare(model: MemarchModel, ids: Tensor) -> Tensor:
    """The backbone's own forward, by transformers' attention."""
    config = copy.deepcopy(model.backbone.config)
    twin = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    twin.load_state_dict(model.backbone.state_dict())
    return twin(ids).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_full_attention_is_the_bare_backbone_on_the_whole_input(family: str) -> None:
    model, ids = build(MEMORIES["full_attention"], family), tokens(2, 14)
    torch.testing.assert_close(model(ids).logits, bare(model, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_no_memory_is_the_bare_backbone_segment_by_segment(family: str) -> None:
    model, ids = build({}, family), tokens(2, 14)
    expected = torch.cat([bare(model, piece) for piece in ids.split(4, dim=1)], dim=1)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_streaming_equals_whole(memory: str) -> None:
    model, ids = build(MEMORIES[memory]), tokens(2, 14)
    whole = model.write(ids)
    pieces = model.write(ids[:, 8:], memory=model.write(ids[:, :8]))
    assert set(whole) == set(pieces)
    for key, value in whole.items():
        torch.testing.assert_close(pieces[key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_row_does_not_depend_on_its_batch_or_padding(memory: str) -> None:
    model, lengths = build(MEMORIES[memory]), [14, 7, 4]
    ids, query = tokens(3, 14), tokens(3, 3, seed=2)
    mask = (torch.arange(14) < torch.tensor(lengths).unsqueeze(1)).long()
    together = model(query, context_ids=ids, context_mask=mask).logits
    for row, length in enumerate(lengths):
        alone = model(query[row : row + 1], context_ids=ids[row : row + 1, :length]).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("memory", MEMORIES)
def test_several_queries_read_one_context(memory: str) -> None:
    model, context, query = build(MEMORIES[memory]), tokens(2, 10), tokens(6, 5, seed=2)
    together = model(query, context_ids=context).logits
    apart = model(query, context_ids=context.repeat_interleave(3, dim=0)).logits
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", MEMORIES)
def test_outputs_are_causal(memory: str) -> None:
    model, ids = build(MEMORIES[memory]), tokens(1, 14)
    for position in (2, 6, 9):
        changed = ids.clone()
        changed[0, position] = (changed[0, position] + 1) % VOCAB
        before, after = model(ids).logits, model(changed).logits
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(after[:, position], before[:, position])


def greedy(model: MemarchModel, query: Tensor, memory: MemoryState | None, steps: int) -> Tensor:
    """The argmax of teacher-forced logits, token by token."""
    for _ in range(steps):
        logits = model(query, memory=memory).logits[:, -1]
        query = torch.cat([query, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return query


@pytest.mark.parametrize("memory", MEMORIES)
def test_generation_equals_teacher_forcing_over_three_borders(memory: str) -> None:
    model, state = build(MEMORIES[memory]), None
    with torch.no_grad():
        state = model.write(tokens(2, 10))
        query = tokens(2, 3, seed=2)
        generated = model.generate(query, memory=state, max_new_tokens=14, do_sample=False)
        assert torch.equal(generated, greedy(model, query, state, 14))


def test_prompts_may_be_padded_on_either_side_and_carry_several_beams() -> None:
    model = build(MEMORIES["armt"])
    state, query = model.write(tokens(2, 10)), tokens(2, 6, seed=2)
    left = torch.cat([torch.zeros(2, 3, dtype=torch.long), query], dim=1)
    mask = (torch.arange(9) >= 3).long().expand(2, -1)
    settings: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
    plain = model.generate(query, memory=state, **settings)
    padded = model.generate(left, attention_mask=mask, memory=state, **settings)
    assert torch.equal(padded[:, 9:], plain[:, 6:])
    beams = model.generate(query, memory=state, num_beams=3, num_return_sequences=3, **settings)
    alone = model.generate(
        query[:1], memory=state.select(torch.tensor([0])), num_beams=3, **settings
    )
    assert torch.equal(beams[:1], alone)


@pytest.mark.parametrize("memory", ["rmt", "gradmem", "armt", "deltanet", "full_attention"])
def test_a_saved_model_is_the_same_model(memory: str, tmp_path: Path) -> None:
    model, context, query = build(MEMORIES[memory]), tokens(2, 10), tokens(2, 5, seed=2)
    expected = model(query, context_ids=context).logits
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for loaded in (
        MemarchModel.from_pretrained(tmp_path),
        AutoModelForCausalLM.from_pretrained(tmp_path),
    ):
        assert loaded.spec == model.spec
        loaded = loaded.double().eval()
        torch.testing.assert_close(
            loaded(query, context_ids=context).logits, expected, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tied_embeddings_stay_tied(family: str, tmp_path: Path) -> None:
    model = build(MEMORIES["rmt"], family, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded = MemarchModel.from_pretrained(tmp_path)
    assert loaded.view.head.weight is loaded.view.embedding.weight
    ids = tokens(1, 6)
    torch.testing.assert_close(
        loaded.double().eval()(ids).logits, model(ids).logits, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_state_saves_and_loads(memory: str, tmp_path: Path) -> None:
    model = build(MEMORIES[memory])
    state = model.write(tokens(2, 10))
    state.save(tmp_path / "state.safetensors")
    loaded = MemoryState.load(tmp_path / "state.safetensors")
    assert loaded.nbytes == state.nbytes
    assert loaded == state
    assert loaded != model.write(tokens(2, 6))
    query = tokens(2, 3, seed=2)
    assert torch.equal(model(query, memory=loaded).logits, model(query, memory=state).logits)


def test_a_models_memory_has_the_size_that_its_paper_gives() -> None:
    """ARMT: per layer 2 nu d_mem (D + 1) numbers; RMT: n D."""
    armt = build({"m": {"type": "armt", "d_mem": 5, "num_tokens": 3}})
    assert armt.write(tokens(1, 9)).numel == 2 * (2 * 3 * 5) * (16 + 1)
    rmt = build({"m": {"type": "rmt", "num_tokens": 3}})
    assert rmt.write(tokens(1, 9)).nbytes == 3 * 16 * 8


@pytest.mark.parametrize("memory", ["gradmem", "gradmem per sample", "nested"])
def test_inference_mode_writes_by_gradients_too(memory: str) -> None:
    model, context, query = build(MEMORIES[memory]), tokens(2, 10), tokens(2, 5, seed=2)
    expected = model(query, context_ids=context).logits.detach()
    with torch.inference_mode():
        got = model(query, context_ids=context).logits
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_other_write_steps_over_the_same_parameters() -> None:
    model = build(MEMORIES["gradmem"])
    more = model.respec(
        model.spec.canonical()
        | {"memory": {"m": {"type": "gradmem", "num_tokens": 2, "write": {"steps": 5}}}}
    )
    assert {id(p) for p in more.parameters()} == {id(p) for p in model.parameters()}
    context = tokens(2, 4)
    assert not torch.equal(more.write(context)["m.tokens"], model.write(context)["m.tokens"])
    with pytest.raises(SpecError, match="parameters of other sizes"):
        model.respec(
            model.spec.canonical() | {"memory": {"m": {"type": "gradmem", "num_tokens": 3}}}
        )
    with pytest.raises(SpecError, match="since the model was built"):
        model.respec(model.spec.canonical() | {"impl": "reference"})


def test_labels_are_scored_where_they_are() -> None:
    model, ids = build(MEMORIES["armt"]), tokens(2, 10)
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[1, 9] = ids[0, 3], ids[1, 9]
    output, full = model(ids, labels=labels), model(ids).logits
    expected = torch.stack([full[0, 2], full[1, 8]])
    torch.testing.assert_close(output.logits, expected)
    loss = torch.nn.functional.cross_entropy(expected, torch.stack([ids[0, 3], ids[1, 9]]))
    torch.testing.assert_close(output.loss, loss)


def test_two_memories_cannot_stand_in_for_one_attention() -> None:
    memory = {
        "a": {"type": "deltanet", "heads": 2},
        "b": {"type": "deltanet", "heads": 2, "layers": [1]},
    }
    with pytest.raises(SpecError, match="both stand in for the attention of layer 1"):
        build(memory)


def test_a_gradient_write_must_be_outermost() -> None:
    memory = {"r": MEMORIES["rmt"]["m"], "g": MEMORIES["gradmem"]["m"]}
    with pytest.raises(SpecError, match="must be the first memory of whole segments"):
        build(memory)
