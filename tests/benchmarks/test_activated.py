"""What the prompt's common reading saves is measured, and changes no answer."""

import activated
import pytest

from lorachains.errors import LorachainsError


def test_a_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activated, "REPEATS", 1)
    found = activated.latency("tiny", tokens=[40, 140], tasks=3, new=2, rows=2)["tokens"]
    for of in found.values():
        assert of["same_answers"] == 1
        assert of["all, read for each"]["tokens_read"] >= of["none"]["tokens_read"]
        assert of["none / all"]["select"] == of["none"]["select"] / of["all"]["select"]
    more = {side: found["140"][side]["tokens_read"] - found["40"][side]["tokens_read"] for side in ("none", "all")}
    assert more["all"] == 2 * 100, "each token of the two requests once"
    assert more["none"] == pytest.approx(2 * more["all"], abs=2 * 16), "and once for each adapter, in blocks"


def test_where_nothing_can_be_shared_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorachains.answering.engine.continues", lambda *_: False)
    with pytest.raises(LorachainsError, match="tiny can't go on from a common reading"):
        activated.latency("tiny", tokens=[40], tasks=3)
