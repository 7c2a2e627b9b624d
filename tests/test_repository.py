"""Citation, issue forms and the workflow of checks agree with the package."""

import re
import tomllib

import pytest
import yaml
from tiny_parts import ROOT

from migm import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))


def entries() -> dict[str, dict[str, str]]:
    """The BibTeX entries of docs/citing.md, by key; a brace or a comma that is missing fails here."""
    text = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    found = {}
    for block in re.findall(r"^```bibtex\n(.*?)^```", text, re.M | re.S):
        entry = r"@(?:article|inproceedings)\{(\w+),\n((?:  \w+ = \{[^{}]+\},\n)+  \w+ = \{[^{}]+\}\n)\}\n"
        assert re.fullmatch(f"(?:{entry})+", block), block
        for key, fields in re.findall(entry, block):
            assert key not in found
            found[key] = dict(re.findall(r"  (\w+) = \{([^{}]+)\}", fields))
    return found


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the schema wants
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    (paper,) = citation["references"]
    entry = entries()["migm_shortcut"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert (paper["title"], " and ".join(names), str(paper["year"])) == (
        entry["title"],
        entry["author"],
        entry["year"],
    )
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert entry["journal"].endswith("arXiv:" + paper["url"].rpartition("/")[2])


def test_every_method_is_cited_by_its_number():
    table = (ROOT / "docs" / "originals" / "methods.md").read_text(encoding="utf-8")
    numbers = dict(re.findall(r"^\| ([\w-]+) \| (\d{4}\.\d{5}) \|", table, re.M))
    assert len(numbers) == 9
    cited = {re.sub(r"\W", "_", name.lower()): number for name, number in numbers.items()}
    for key, number in cited.items():
        entry = entries()[key]
        assert number in entry.get("journal", "") + entry.get("eprint", ""), key
    bases = {"maskgit_pytorch", "halton", "amused", "meissonic", "dimo", "mmada"}
    assert set(entries()) - set(cited) == bases


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_of_an_issue_has_what_github_reads(form):
    node = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(node)
    fields = [field for field in node["body"] if field["type"] != "markdown"]
    assert fields
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
        if field["type"] in ("dropdown", "checkboxes"):
            assert field["attributes"]["options"]


def test_there_are_forms_for_bugs_questions_and_additions():
    assert [form.stem for form in FORMS] == ["bug", "new_base_or_method", "question"]


def test_the_workflow_calls_what_the_makefile_has_on_the_versions_that_the_package_takes():
    scripts = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    targets = {target for script in scripts for target in re.findall(r"\bmake ([\w-]+)", script)}
    assert targets == {"lint", "browser", "test"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    versions = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text}
    assert versions == set(WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"])
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
