"""A text that is too long for the model is refused before the first step."""

import pytest
from transformers import PreTrainedTokenizerFast

from lorachains.data.reasoning import datamodule
from lorachains.errors import LorachainsError


def test_a_text_beyond_the_models_positions(tokenizer: PreTrainedTokenizerFast) -> None:
    data = datamodule(
        tokenizer, task="leg_counting", tasks=None, candidates=None, options={}, batch_size=2, eval_batch_size=None,
        train_size=4, val_size=2, test_size=2, seed=0, order_seed=0, max_length=200, max_new_tokens=8,
    )  # fmt: skip
    data.setup()
    data.check_fits(None)
    data.check_fits(208 + 8)
    with pytest.raises(LorachainsError, match=r"but the model reads 128: set data.max_length=120"):
        data.check_fits(128)
