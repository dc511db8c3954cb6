import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.graders.base import Sample, TextTooLong
from iro_server.graders.parsing import parse_grader
from iro_server.graders.templates import MissingField, check_template, item_fields, render

plain = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]))
leaves = st.none() | st.booleans() | st.integers() | st.text()
json_values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(before=plain, value=st.text(), after=plain)
def test_strings_are_put_in_as_they_are(before, value, after):
    template = check_template(before + "{{ item.x }}" + after)
    assert render(template, {"item": {"x": value}, "sample": {}}) == before + value + after


@given(value=json_values.filter(lambda value: not isinstance(value, str)))
def test_other_values_are_put_in_as_json(value):
    assert json.loads(render("{{item.x}}", {"item": {"x": value}, "sample": {}})) == value


pieces = st.lists(
    st.sampled_from(["{{", "}}", "{", "}", " ", ".", "[", "]", "'", "item", "sample", "a", "0", "-1", "output_text"])
    | st.text(max_size=4)
)
anything = st.text(st.characters()) | pieces.map("".join)


@given(template=anything, item=st.dictionaries(st.sampled_from(["a", "0"]), json_values), text=anything)
def test_any_template_is_refused_or_rendered_or_lacks_a_field(template, item, text):
    with contextlib.suppress(ValueError):
        check_template(template)
        with contextlib.suppress(MissingField):
            render(template, {"item": item, "sample": Sample(text).as_dict()})


@given(text=anything)
def test_values_are_never_rendered(text):
    assert render("<{{ item.x }}>", {"item": {"x": text}, "sample": {}}) == f"<{text}>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ item.x", "is not closed"),
        ("{{ sample.output_text }", "is not closed"),
        ("say {item.x} now", r"two braces on each side: {{item.x}}"),
        ("{{ sample.output }}", "none of a sample's fields: output_text, output_json, output_tools, choices"),
    ],
)
def test_what_is_meant_as_an_expression_is_not_taken_for_text(template, said):
    with pytest.raises(ValueError, match=said):
        check_template(template)


def test_the_fields_of_the_item_that_a_template_reads():
    template = "{{item.a.b}} {{ item['two words'][0] }} {{sample.output_text}} {{ item }} c"
    assert item_fields(template) == {"a", "two words"}


def test_braces_that_mean_nothing_are_text_and_read_once():
    assert render(check_template('{"x": {"item": 1}} {{ x'), {"item": {}, "sample": {}}) == '{"x": {"item": 1}} {{ x'
    many = "{{ " * 200_000  # takes minutes where each is searched to the end
    assert render(check_template(many), {"item": {}, "sample": {}}) == many


@given(text=plain)
def test_text_without_expressions_is_itself(text):
    assert render(check_template(text), {"item": {}, "sample": {}}) == text


def test_paths_reach_into_objects_and_arrays():
    scope = {"item": {"a": [{"b": "x"}, {"b": "y"}], "été": "z"}, "sample": {"output_json": {"n": 3}}}
    template = "{{ item.a[1].b }} {{item.a.0.b}} {{ sample.output_json.n }} {{ item.été }} {{ item['a'][0][\"b\"] }}"
    assert render(check_template(template), scope) == "y x 3 z x"


def test_what_openai_puts_in_a_sample_can_be_reached():
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"q": 1}'}}
    scope = {"item": {"two words": "x"}, "sample": Sample("hi", output_tools=[call]).as_dict()}
    template = (
        "{{sample.output_tools[0].function.name}} {{ sample.choices[0].message.content }} {{ item['two words'] }}"
    )
    assert render(check_template(template), scope) == "search hi x"
    assert json.loads(render("{{ sample.output_tools }}", scope)) == [call]


def test_a_value_that_looks_like_a_template_is_not_rendered_again():
    assert (
        render("{{ item.x }}", {"item": {"x": "{{ item.secret }}", "secret": "s"}, "sample": {}}) == "{{ item.secret }}"
    )


@pytest.mark.parametrize(
    "expression", ["foo", "item.x + 1", "items.x", "item..x", "item.x|upper", "", "item.__class__()"]
)
def test_anything_but_a_path_is_refused_and_quoted(expression):
    template = "a {{ item.ok }} {{" + expression + "}}"
    with pytest.raises(ValueError, match="is not a path") as refused:
        check_template(template)
    assert "{{" + expression + "}}" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("item.label", "item has no field 'label'"),
        ("item.a.b", "item.a has no field 'b'"),
        ("item.list[5]", "item.list has no field '5'"),
        ("item.list.-1", "item.list has no field '-1'"),
        ("item.list.99999999999999999999", "item.list has no field"),
        ("sample.output_json.x", "the sample is not JSON"),
        ("sample.output_json", "the sample is not JSON"),
        ("item.word.__class__", "item.word has no field '__class__'"),
    ],
)
def test_a_missing_field_is_named(path, said):
    scope = {"item": {"a": {}, "list": [1], "word": "w"}, "sample": {"output_json": None}}
    with pytest.raises(MissingField) as missing:
        render("{{ " + path + " }}", scope)
    assert said in str(missing.value)


@pytest.mark.parametrize("entry", ["grade", "check_texts"])
def test_json_of_any_depth_is_graded_or_fails_by_itself(entry):
    """Near Python's limit a text can be parsed and not be written again."""
    spec = {"type": "string_check", "operation": "ne", "input": "{{ sample.output_json }}", "reference": "x"}
    grader = parse_grader(spec)
    for depth in range(700, 1100):
        sample = Sample("[" * depth + "]" * depth)
        if entry == "check_texts":
            grader.check_texts(sample, {})
        else:
            grade = grader.grade(sample, {})
            assert grade.reward == 1 or grade.flag == "sample_parse_error"


def test_a_value_that_is_nested_too_deeply_is_named():
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(MissingField, match=r"nested too deeply \(in {{ item.x }}\)") as refused:
        render("{{ item.x }}", {"item": {"x": value}, "sample": {}})
    assert refused.value.flag == "sample_parse_error"


def quickly(call):
    started = time.thread_time()
    call()
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ item." + "a" * 10**6, "is not closed"),
        ("{{ item.a }} " * 10**4 + "{{ item.b", "{{ item.b is not closed"),
        ("{{ {{ item.a }} }}", "{{ {{ item.a }} is not a path"),
        ("{{" * 10**5 + "item.a" + "}}" * 10**5, "is not a path"),
        ("{{ item." + "a." * 10**5 + "}}", "is not a path"),
        ("{item." + "a" * 10**6 + "}", "two braces"),
        ("{{ item['" + "a" * 10**6 + " }}", "is not a path"),
        ("{{ sample." + "a" * 10**6 + " }}", "none of a sample's fields"),
    ],
)
def test_a_hostile_template_is_refused_quickly_and_briefly(template, said):
    def check():
        with pytest.raises(ValueError) as refused:
            check_template(template)
        assert said in str(refused.value) and len(str(refused.value)) < 500

    quickly(check)


@pytest.mark.parametrize("count", [1, 10**5])
def test_a_missing_field_among_many_is_named_quickly(count):
    scope = {"item": {f"field{i}": "x" for i in range(10**5)}, "sample": {}}

    def fill():
        with pytest.raises(MissingField, match="item has no field 'a'"):
            render("{{ item.field1 }}" * (count - 1) + "{{ item.a }}", scope)

    quickly(fill)


def test_a_missing_field_of_a_long_name_is_named_briefly():
    with pytest.raises(MissingField) as missing:
        render("{{ item." + "a" * 10**6 + " }}", {"item": {}, "sample": {}})
    assert len(str(missing.value)) < 500


def test_no_more_is_put_in_than_the_limit():
    with pytest.raises(TextTooLong, match="limit of 100000 bytes"):
        quickly(lambda: render("{{ item.a }}" * 10**5, {"item": {"a": "x" * 90_000}, "sample": {}}, 100_000))
