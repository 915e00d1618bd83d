"""What §6.2 and App. A.2 to A.4 of COLA vary, on runs of a few optimizer steps."""

import pytest

from tests.runs import States, fit, make_method

FIVE_EPOCHS = ["trainer.max_epochs=5"]


@pytest.mark.parametrize(("links", "ends"), [(1, []), (2, [6]), (3, [4, 8]), (4, [4, 6, 8]), (5, [2, 4, 6, 8])])
def test_five_epochs_in_so_many_links(links: int, ends: list[int]) -> None:
    """Two optimizer steps an epoch; two links are 3 + 2 epochs, as in Table 3."""
    method = make_method("method=cola", "knots=even", f"knots.links={links}")
    fit(method, *FIVE_EPOCHS, train_size=8)
    assert method.chain.knots == ends
    assert method.chain.ranks == [8] * (links - 1)


@pytest.mark.parametrize("second", [2, 4, 6, 8])
@pytest.mark.parametrize(("policy", "alpha_over"), [("ratio", 8), ("alpha", None)])
def test_rank_step_down(second: int, policy: str, alpha_over: int | None) -> None:
    """COLA (8, r) of Table 4: the first link is the same whatever the second's rank and scaling."""
    states, alone = States(), States()
    shared = ["method=cola", "knots=at_epochs", "knots.epochs=[3]"]
    method = make_method(*shared, f"knots.ranks=[8,{second}]", f"knots.scaling={policy}")
    fit(method, *FIVE_EPOCHS, callbacks=[states], train_size=4)
    fit(make_method("method=lora"), *FIVE_EPOCHS, callbacks=[alone], train_size=4)
    assert method.chain.knots == [3]
    for name, bank in method.chain.banks.items():
        assert bank.lora_A.shape[1] == second
        assert bank.scaling.item() == pytest.approx(16 / (alpha_over or second))
        assert (states.after[3][f"{name}.lora_B"] == alone.after[3][f"{name}.lora_B"]).all()


@pytest.mark.parametrize("rank", [8, 16, 32, 64])
def test_ranks(rank: int) -> None:
    """Table 8; also beyond what the layer has room for."""
    method = make_method("method=cola", f"adapter.r={rank}")
    fit(method, "trainer.max_epochs=3", train_size=4)
    assert [*method.chain.ranks, method.chain.rank] == [rank] * 3
    for bank in method.chain.banks.values():
        assert bank.ledger_B.abs().sum() > 0
        assert bank.ledger_A.shape[1] == 2 * rank
