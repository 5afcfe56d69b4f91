"""kubectl's JSONPath templates; every expected text is what kubectl 1.32 printed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kserve_local.cli.jsonpath import Template
from kserve_local.errors import UsageError

IRIS: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "iris", "labels": {"a.b/c": "x"}},
    "spec": {
        "e": {},
        "f": 1.5,
        "g": 2.0,
        "l": [1, 2, 3],
        "m": [
            {"type": "Ready", "status": "True", "v": 3},
            {"type": "Other", "status": "False", "v": 5},
        ],
        "nothing": None,
        "s": "x<y&z é",
        "t": True,
    },
}
CONDITIONS = '[{"status":"True","type":"Ready","v":3},{"status":"False","type":"Other","v":5}]'
AS_KUBECTL = [
    ("plain", "plain"),
    ("{.metadata.name}", "iris"),
    ("{ .metadata.name }", "iris"),
    ("{$.kind}{@.kind}", "InferenceServiceInferenceService"),
    ("a{.kind}b\\n{'\\t'}", "aInferenceServiceb\\n\t"),
    ("{.metadata.labels.a\\.b/c}", "x"),
    ("{.metadata.labels['a\\.b/c']}", "x"),
    ("{.nope}", ""),
    ("{.metadata.nope.deeper}", ""),
    ("{.metadata.name.deeper}", ""),
    ("{.}", ""),
    ("{.spec.f} {.spec.t} {.spec.nothing} {.spec.e} {.spec.g}", "1.5 true null {} 2"),
    ("{.spec.s}", "x<y&z é"),
    ("{.spec.m}", CONDITIONS),
    ("{.spec['e','s']}", "{} x<y&z é"),
    # Lists.
    ("{.spec.l}", "[1,2,3]"),
    ("{.spec.l[*]}", "1 2 3"),
    ("{.spec.l[0]}{.spec.l[-1]}", "13"),
    ("{.spec.l[0:2]}", "1 2"),
    ("{.spec.l[-2:]}", "2 3"),
    ("{.spec.l[::2]}", "1 3"),
    ("{.spec.l[1:1]}x", "x"),
    ("{.spec.l[0,2]}", "1 3"),
    ("{.spec.m[*].type}", "Ready Other"),
    ("{.spec.m[*]['type','v']}", "Ready Other 3 5"),
    ("{.spec.nothing[0]}", ""),
    ("{.spec.nope[?(@.v>3)].type}", ""),
    # Everything below.
    ("{..type}", "Ready Other"),
    ("{.spec..v}", "3 5"),
    ("{..name}", "iris"),
    # Filters.
    ('{.spec.m[?(@.type=="Ready")].status}', "True"),
    ("{.spec.m[?(@.type=='Ready')].v}", "3"),
    ('{.spec.m[?(@.type == "Ready")].v}', "3"),
    ('{.spec.m[?(@.status != "True")].v}', "5"),
    ('{.spec.m[?(@.type=="a)b")].v}', ""),
    ("{.spec.m[?(@.v>3)].type}", "Other"),
    ("{.spec.m[?(@.v==3)].type}", "Ready"),
    ("{.spec.m[?(@.status)].type}", "Ready Other"),
    ("{.spec.m[?(@.nope)].type}", ""),
    ("{.spec.l[?(@>=2)]}", "2 3"),
    # Ranges.
    ('{range .spec.m[*]}{.type}={.status}{"\\n"}{end}', "Ready=True\nOther=False\n"),
    ("{range .spec.l[*]}[{@}]{end}.", "[1][2][3]."),
    ("{range .spec.m[*]}{range .nope[*]}x{end}{.type};{end}", "Ready;Other;"),
    ("{range .spec.m[?(@.v>1)]}{.type},{end}", "Ready,Other,"),
    ("{range .nope[*]}x{end}y", "y"),
    # Literals.
    ("{'it\\'s'}", "it's"),
    ('{"a\\u00e9\\x41"}', "aéA"),
    ("{1} {-1.5} {true}", "1 -1.5 true"),
]


@pytest.mark.parametrize(("template", "printed"), AS_KUBECTL, ids=[t for t, _ in AS_KUBECTL])
def test_a_template_prints_what_kubectl_prints(template: str, printed: str) -> None:
    assert Template(template).render(IRIS) == printed


def test_kubectl_itself_agrees(tmp_path: Path) -> None:
    """One process for all templates, put together into one; texts between keep them apart.

    Where there is no kubectl, what it printed is in the table all the same.
    """
    if not shutil.which("kubectl"):
        return
    (tmp_path / "iris.json").write_text(json.dumps(IRIS))
    template = "\x1f".join(t for t, _ in AS_KUBECTL)
    done = subprocess.run(
        ["kubectl", "annotate", "--local", "-f", "iris.json", "a-", "-o", f"jsonpath={template}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\x1f") == [printed for _, printed in AS_KUBECTL]


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        (".metadata.name", "iris"),
        ("$.spec.l[1]", "2"),
        (".spec.m[?(@.type=='Ready')].v", "3"),
        ("{.metadata.labels['a.b/c']}", "x"),
        ('{.metadata.labels["a.b/c"]}', "x"),
        ('{.spec.m[?(@.type=="Ready")]["type"]}', "Ready"),
    ],
)
def test_what_kubectl_is_strict_about_is_understood(template: str, printed: str) -> None:
    assert Template(template).render(IRIS) == printed


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{.metadata", "unclosed action"),
        ("{.a\n}", "unclosed action"),
        ("{end}", "nothing to end"),
        ("{range .items[*]}x", "no {end}"),
        ("{kind}", 'unrecognized identifier "kind"'),
        ("{.a[}", "unterminated array"),
        ("{.a[x]}", "invalid array index x"),
        ("{.a[]}", "invalid array index"),
        ("{.a[-]}", "invalid array index -"),
        ("{.a[?(@.b]}", "unterminated filter"),
        ("{.a[?(@.b)}", "ends with )]"),
        ("{.a[?(@.b=1)]}", "unrecognized filter operator ="),
        ("{.a[?(@.b=='x)]}", "unterminated quoted string"),
        ('{"x}', "unterminated quoted string"),
        ("{.a,.b}", 'unrecognized character ","'),
        ("{1.2.3}", "cannot parse number"),
    ],
)
def test_a_template_that_cannot_be_read_says_why(template: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(template)
    assert problem in caught.value.message
    assert template in caught.value.message


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{.spec.l[5]}", "array index out of bounds: index 5, length 3"),
        ("{.spec.l[-5]}", "array index out of bounds: index -2, length 3"),
        ("{.spec.l[9:]}", "array index out of bounds: index 9, length 3"),
        ("{.spec.m[0:5].v}", "array index out of bounds: index 4, length 2"),
        ("{.spec.l[2:1]}", "starting index 2 is greater than ending index 1"),
        ("{.spec.l[::-1]}", "step must be > 0"),
        ("{.spec.s[0]}", "string is not array or slice"),
        ("{[0]}", "map is not array or slice"),
        ("{.kind[?(@.x)]}", "string is not array or slice"),
        ('{.spec.m[?(@.v>"a")].v}', "incompatible types: number > string"),
        ("{.spec.m[?(@.*==1)]}", "only compare one element"),
    ],
)
def test_a_step_that_does_not_fit_the_data_is_an_error_as_in_kubectl(
    template: str, problem: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Template(template).render(IRIS)
    assert problem in caught.value.message
