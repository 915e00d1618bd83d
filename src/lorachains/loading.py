"""Adapters of a run, or anyone's PEFT adapter, put onto their base."""

from pathlib import Path

from lorachains.chain import Chain
from lorachains.models import LanguageModel, fingerprint
from lorachains.peft_format import check_base, load_adapter, read_config


def attach_adapter(base: LanguageModel, folder: Path) -> Chain:
    """Puts a saved PEFT adapter onto the base model, in place.

    Returns:
        The chain of one adapter that now serves every row.

    Raises:
        LorachainsError: there is no adapter, it can't be read, or it belongs to another base.
    """
    check_base(folder, base.name, fingerprint(base.model))
    config = read_config(folder)
    config.init_lora_weights = True  # the weights are loaded
    chain = Chain(base.model, config)
    load_adapter(chain, folder)
    return chain
