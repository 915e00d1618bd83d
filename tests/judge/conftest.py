import pytest


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between a test and its endpoint, and no judge of the user's own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("JUDGE_API_KEY", "JUDGE_BASE_URL", "JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
