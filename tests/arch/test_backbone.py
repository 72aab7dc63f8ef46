"""Pretrained backbones: a fresh memory leaves them as they are, layers can be left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from memarch.arch.build import build_model
from memarch.arch.model import MemarchModel
from memarch.components.errors import SpecError

LLAMA = LlamaConfig(
    vocab_size=31,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
GPT2 = GPT2Config(vocab_size=31, n_embd=24, n_layer=3, n_head=4, n_positions=64)
ARMT: dict[str, Any] = {"m": {"type": "armt", "d_mem": 8, "num_tokens": 3}}


@pytest.fixture(params=[LLAMA, GPT2], ids=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config: PretrainedConfig = request.param
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def wrap(folder: Path, memory: dict[str, Any], **backbone: Any) -> MemarchModel:
    spec = {
        "backbone": {"pretrained": str(folder), **backbone},
        "memory": memory,
        "segment_length": 8,
    }
    return build_model(spec).eval()


@torch.no_grad()
def test_a_fresh_associative_memory_leaves_the_logits_of_the_bare_model(folder: Path) -> None:
    ids = torch.randint(0, 31, (2, 29))
    bare = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = torch.cat([bare(piece).logits for piece in ids.split(8, dim=1)], dim=1)
    got = wrap(folder, ARMT)(ids).logits
    assert float((got - expected).abs().max() / expected.abs().max()) <= 2e-6

    plain, wrapped = wrap(folder, {}).double(), wrap(folder, ARMT).double()
    expected, got = plain(ids).logits, wrapped(ids).logits
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-12


def test_generation_crosses_segment_borders_as_the_bare_model_would(folder: Path) -> None:
    """Segment by segment, the bare model gives the same continuation."""
    model, prompt = wrap(folder, ARMT), torch.randint(0, 31, (1, 5))
    bare = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    generated = model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None)
    ids = prompt
    for _ in range(24):
        start = (ids.shape[1] - 1) // 8 * 8
        ids = torch.cat([ids, bare(ids[:, start:]).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(generated, ids)


def test_layers_of_a_pretrained_model_can_be_left_out(folder: Path) -> None:
    model = wrap(folder, {}, keep_layers=[0, 2])
    bare = AutoModelForCausalLM.from_pretrained(folder)
    ours = model.view.layers[1].state_dict()
    theirs = bare.get_submodule(model.view.family.layers)[2].state_dict()
    assert len(model.view.layers) == 2
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    with pytest.raises(SpecError, match=r"layers? .*3"):
        wrap(folder, {}, keep_layers=[0, 3])


def test_a_separate_write_head_starts_as_the_pretrained_head(folder: Path) -> None:
    model = wrap(folder, {"m": {"type": "gradmem", "num_tokens": 2, "write": {"head": "separate"}}})
    head = dict(model.named_parameters())["memories.m.head.weight"]
    assert torch.equal(head, model.view.head.weight)
    assert head is not model.view.head.weight


def test_an_unsupported_model_is_refused_by_name() -> None:
    spec = {
        "backbone": {"type": "bert", "hidden_size": 16, "num_attention_heads": 2},
        "segment_length": 8,
    }
    with pytest.raises(SpecError, match=r"model\.backbone\.type.*bert"):
        build_model(spec, vocab_size=31)
