import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lorachains.errors import LorachainsError
from lorachains.models import gguf_file, load
from lorachains.models.gguf_file import converted
from tests.models.gguf_files import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_llama, write_gguf

TOKENS = torch.tensor([[1, 50, 60, 70, 2], [9, 8, 7, 6, 5]])


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def gguf(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama)


@pytest.fixture(scope="module")
def entry(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(gguf, dtype=torch.float32, cache=tmp_path_factory.mktemp("cache"))


def test_same_logits_as_the_model_it_was_written_from(llama: LlamaForCausalLM, entry: Path) -> None:
    ours = AutoModelForCausalLM.from_pretrained(entry)
    torch.testing.assert_close(ours(TOKENS).logits, llama(TOKENS).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("text", ["the  heat", "12 + 345 = 357\n\n1.  2", "don't\tyou'll", "é 日本 😀", " a \n b"])
def test_text_survives_the_tokenizer(entry: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(entry)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_are_cut_off_before_anything_is_merged(entry: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(entry)
    assert tokenizer.tokenize("he  1 1") == ["he", "\u0120\u0120", "1", "\u0120", "1"]


def test_special_tokens_and_chat_template_are_kept(entry: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(entry)
    assert tokenizer("".join(SPECIAL_TOKENS)).input_ids == [0, 1, 2]
    assert (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) == SPECIAL_TOKENS
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.model_max_length == 128


def test_loaded_model_is_named_after_the_file_and_pads_with_eos(gguf: Path, tmp_path: Path) -> None:
    loaded = load(str(gguf), dtype="bfloat16", cache_dir=str(tmp_path))
    assert loaded.name == str(gguf)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token == "<|im_end|>"
    assert loaded.model.generation_config.eos_token_id == loaded.tokenizer.eos_token_id


def test_second_time_comes_from_the_cache(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted(gguf, dtype=torch.float32, cache=tmp_path)
    monkeypatch.setattr(gguf_file, "_read", lambda *_: pytest.fail("the file was dequantised again"))
    assert converted(gguf, dtype=torch.float32, cache=tmp_path) == first


def test_each_dtype_and_each_version_of_the_file_has_its_own_entry(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", llama)
    entries = {converted(file, dtype=dtype, cache=tmp_path) for dtype in (torch.float32, torch.bfloat16)}
    file.touch()
    entries.add(converted(file, dtype=torch.float32, cache=tmp_path))
    assert len(entries) == 3


@pytest.mark.parametrize("damage", ["cut", "lost", "no manifest"])
def test_damaged_entry_is_made_anew(
    gguf: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture, llama: LlamaForCausalLM
) -> None:
    entry = converted(gguf, dtype=torch.float32, cache=tmp_path)
    weights = entry / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "lost":
        weights.unlink()
    else:
        (entry / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        converted(gguf, dtype=torch.float32, cache=tmp_path)
    assert "damaged" in caplog.text
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(entry)(TOKENS).logits, llama(TOKENS).logits)


@pytest.mark.parametrize("kept", [0, 3, 100, 5_000, 50_000])
def test_cut_file_is_refused_in_one_line(gguf: Path, tmp_path: Path, kept: int) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes()[:kept])
    with pytest.raises(LorachainsError, match=r"broken\.gguf: can't be read as a GGUF model") as error:
        converted(broken, dtype=torch.float32, cache=tmp_path)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "gguf").glob("*/*"))


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("not a model " * 1000)
    with pytest.raises(LorachainsError, match="can't be read as a GGUF model"):
        converted(text, dtype=torch.float32, cache=tmp_path)
