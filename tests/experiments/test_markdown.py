"""Parts of Markdown pages, letter by letter."""

from branchprune.experiments.markdown import distinct, folded, markdown_table

LINES = [["method", "n", "score"], ["a|b", "3", "0.5"]]


def test_the_first_column_of_a_table_is_left_and_the_others_right():
    assert (
        markdown_table(LINES)
        == "| method | n | score |\n| --- | ---: | ---: |\n| a\\|b | 3 | 0.5 |"
    )


def test_columns_stand_as_they_are_told():
    assert markdown_table(LINES, "rll").splitlines()[1] == "| ---: | --- | --- |"


def test_folded_content_stands_on_lines_of_its_own():
    assert folded("Commands", "x") == "<details><summary>Commands</summary>\n\nx\n\n</details>"


def test_values_are_named_once_in_their_order():
    assert distinct(["b", None, "a", "b"]) == "b and a"
    assert distinct([None]) == "–"
