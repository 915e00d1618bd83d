"""Whether the Hugging Face hub has a model, without the long retries that transformers makes when it is away."""

import logging
from pathlib import Path

from huggingface_hub import HfApi, errors, try_to_load_from_cache

from lorachains.errors import LorachainsError

log = logging.getLogger(__name__)

_TIMEOUT_S = 3.0
# The base of httpx's errors or of httpx2's, whichever the installed huggingface_hub uses.
_HTTPError: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]


def on_hub(name: str, key: str = "model.name") -> bool:
    """Whether the hub answers and has the model `name`; False where it can't be reached within seconds.

    Args:
        key: the setting that names it, for errors.

    Raises `LorachainsError` where the hub answers that it has no such model, or doesn't give it out.
    """
    try:
        HfApi().model_info(name, timeout=_TIMEOUT_S)
    except errors.HFValidationError as error:
        raise LorachainsError(
            f"{key} is {name!r}: no such folder or file, and not a name that the hub could have"
        ) from error
    except errors.GatedRepoError as error:
        raise LorachainsError(
            f"{key} is {name!r}: accept its terms on the hub's page, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise LorachainsError(
            f"{key} is {name!r}: the hub has no such model, nor is it a folder or file here; correct the name "
            "(a private model needs `hf auth login`)"
        ) from error
    except (_HTTPError, errors.OfflineModeIsEnabled) as error:
        log.debug("the hub can't be reached: %s", error)
        return False
    return True


def in_hub_cache(name: str) -> Path | None:
    """The folder of the model in the hub's own cache, or None where its config or weights are missing."""
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str) or not has_weights(Path(config).parent):
        return None
    return Path(config).parent


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds weights in a format that transformers loads."""
    return any(file.is_file() for pattern in ("*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern))
