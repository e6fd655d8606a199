import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run_and_print_what_they_show(capsys):
    text = README.read_text("utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    code = [body for language, body in blocks if language == "python"]
    assert len(code) == 8
    names: dict[str, object] = {}
    for body in code:
        exec(body, names)
    printed = capsys.readouterr().out
    (table,) = [body for language, body in blocks if language == "text"]
    assert table.strip() in printed
    # A quarter of the parameters, as the rank was chosen; candidates in the order of their ranks.
    assert abs(names["cp"].size / names["kernel"].size - 0.25) < 0.01
    assert 0.495 <= names["plan"].size / names["plan"].size_before <= 0.5
    assert names["change"][0] > names["change"][1] > names["change"][2]
