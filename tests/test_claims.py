"""Every numbered claim has a test that can fail, or a reason and a citation; nothing else has."""

import ast
from pathlib import Path

import claim_labels
import pytest

ROOT = Path(__file__).resolve().parents[1]
NUMBERED = claim_labels.numbered()
TESTS = claim_labels.marked_tests()
CITED = claim_labels.cited()


def test_there_are_claims():
    assert len(NUMBERED) > 10


@pytest.mark.parametrize("label", sorted(NUMBERED))
def test_claim_is_tested_or_cited(label):
    assert (label in TESTS) != (label in CITED), (
        f"{NUMBERED[label]}: {label} needs a test marked claim({label!r}), "
        "or an entry in tests/claims_cited.yml, and not both"
    )


@pytest.mark.parametrize("label", sorted({*TESTS, *CITED}))
def test_no_test_without_a_claim(label):
    assert label in NUMBERED, f"no theorem in notebooks/ or book/ has the label {label}"


@pytest.mark.parametrize(
    "test", [t for group in TESTS.values() for t in group], ids=lambda t: t.name
)
def test_claim_is_seen_to_fail(test):
    """A claim test runs with an ingredient broken too: its parameter ``broken`` names it."""
    tree = ast.parse((ROOT / test.path).read_text(encoding="utf-8"))
    (function,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == test.name
    )
    assert "broken" in [argument.arg for argument in function.args.args]


def _write(folder: Path, text: str) -> Path:
    (folder / "notebooks").mkdir()
    (folder / "book").mkdir()
    (folder / "book" / "page.md").write_text(text, encoding="utf-8")
    return folder


def test_labels_are_found(tmp_path):
    text = ":::{prf:theorem} Title\n:label: thm-a\n\nText.\n:::\n\n```{prf:remark}\nNo.\n```\n"
    assert claim_labels.numbered(_write(tmp_path, text)) == {"thm-a": "book/page.md"}


@pytest.mark.parametrize(
    "text",
    [
        ":::{prf:theorem} Without a label\n\nText.\n:::\n",
        ":::{prf:lemma}\n:label: lem-a\n:::\n\n:::{prf:lemma}\n:label: lem-a\n:::\n",
    ],
)
def test_missing_and_repeated_labels_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="label"):
        claim_labels.numbered(_write(tmp_path, text))
