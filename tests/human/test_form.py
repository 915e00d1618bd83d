"""The page holds its texts as they are, needs nothing from elsewhere, and saves what the reader takes."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lorachains.human.form import form

ROWS = [
    ("00000001", "Say 好\n<b>", "</script><script>alert(1)</script>"),
    ("00000002", "{{data}}", "\u2028 & \\u003c"),
    ("00000003", "p", ""),
]


def parts(page: str) -> tuple[str, str]:
    """The data, and the script."""
    found = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(found) == 2
    return found[0], found[1]


def test_the_texts_come_through() -> None:
    data = json.loads(parts(form("annotator-1", ROWS))[0])
    assert [(row["item"], row["prompt"], row["response"]) for row in data["rows"]] == ROWS
    assert data["name"] == "annotator-1"
    assert data["id"] != json.loads(parts(form("annotator-1", ROWS[:2]))[0])["id"]


def test_nothing_is_fetched() -> None:
    page = form("annotator-1", [])
    assert not re.search(r"https?:|\bsrc=|<link|@import|url\(|fetch\(", page)
    assert "default-src 'none'" in page
    assert 'name="viewport"' in page


BROWSER = """
const nodes = {}, handlers = {}, memory = MEMORY;
let saved = null;
function node(id) {
  return nodes[id] ??= {dataset: {}, attributes: {}, on: {}, textContent: "",
    addEventListener(what, act) { this.on[what] = act; }, setAttribute(name, value) { this.attributes[name] = value; },
    click() { this.on.click?.(); }};
}
const buttons = ["fail", "pass", "excellent"].map(name => Object.assign(node(name), {dataset: {rating: name}}));
node("data").textContent = DATA;
globalThis.document = {getElementById: node, querySelectorAll: () => buttons, createElement: () => node("link"),
  addEventListener: (what, act) => handlers[what] = act};
globalThis.localStorage = {getItem: key => memory[key] ?? null, setItem: (key, value) => memory[key] = value};
globalThis.addEventListener = globalThis.scrollTo = () => {};
globalThis.Blob = class { constructor(texts) { saved = texts.join(""); } };
URL.createObjectURL = () => "blob:";
const press = key => handlers.keydown({key});
SCRIPT
ACTIONS
console.log(JSON.stringify({saved, memory, file: node("link").download, place: node("place").textContent,
  shown: node("response").textContent, pressed: buttons.map(button => button.attributes["aria-pressed"])}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script")
def test_a_sheet_is_filled_saved_and_taken_up_again(tmp_path: Path) -> None:
    data, script = parts(form("annotator-1", ROWS))

    def browser(actions: str, memory: dict[str, str]) -> dict[str, object]:
        page = BROWSER.replace("MEMORY", json.dumps(memory)).replace("DATA", json.dumps(data))
        (tmp_path / "page.js").write_text(page.replace("SCRIPT", script).replace("ACTIONS", actions))
        done = subprocess.run(["node", str(tmp_path / "page.js")], capture_output=True, text=True, check=True)
        state: dict[str, object] = json.loads(done.stdout)
        return state

    first = browser('press("3"); node("fail").click(); press("ArrowLeft"); node("save").click();', {})
    assert first["saved"] == "item,rating\n00000001,excellent\n00000002,fail\n00000003,\n"
    assert first["file"] == "annotator-1.csv"
    assert first["place"] == "Response 2 of 3, 2 rated"
    assert first["shown"] == ROWS[1][2]
    assert first["pressed"] == [True, False, False]
    memory = first["memory"]
    assert isinstance(memory, dict)
    again = browser('press("2"); press("ArrowRight"); press("x"); node("save").click();', memory)
    assert again["saved"] == "item,rating\n00000001,excellent\n00000002,fail\n00000003,pass\n"
