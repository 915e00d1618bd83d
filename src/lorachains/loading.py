"""Adapters of a run, or anyone's PEFT adapter, put onto their base."""

from pathlib import Path

from lorachains.chain import Chain
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel, base_fingerprint
from lorachains.peft_format import CONFIG, check_base, read_config, refuse_activated
from lorachains.run_folder import RunFolder
from lorachains.transfer import begin_with, load_adapter


def attach_adapter(base: LanguageModel, folder: Path) -> Chain:
    """Puts a saved PEFT adapter onto the base model, in place.

    Returns:
        The chain of one adapter that now serves every row.

    Raises:
        LorachainsError: there is no adapter, it can't be read, or it belongs to another base.
    """
    check_base(folder, base.name, base_fingerprint(base))
    config = read_config(folder)
    refuse_activated(folder, config)
    config.init_lora_weights = True  # the weights are loaded
    chain = Chain(base.model, config)
    load_adapter(chain, folder)
    return chain


def go_on_from(chain: Chain, base: LanguageModel, start: Path, links: int | None) -> None:
    """Begins a new run's chain with the links that another run has tied over the same base.

    Args:
        start: an adapter's folder, or a run's, whose adapter is taken.
        links: how many of its links are taken; all if `None`.

    Raises:
        LorachainsError: there is no adapter, it belongs to another base, or it doesn't fit this run's.
    """
    folder = start if (start / CONFIG).is_file() else RunFolder(start).adapter
    if not (folder / CONFIG).is_file():
        raise LorachainsError(f"start_from is {start}: give the folder of a run or of an adapter, with its {CONFIG}")
    check_base(folder, base.name, base_fingerprint(base))
    begin_with(chain, folder, links)
