"""Class lists as people have them, with and without texts for the teacher; and what is none. Starts no Ray."""

import codecs

import pytest

from raykd.algo.prompts import ClassTexts
from raykd.errors import UserError
from raykd.images.class_lists import class_list


@pytest.fixture
def classes(tmp_path):
    """The classes in a file of that name and content."""

    def classes(name: str, content: str | bytes) -> dict[str, ClassTexts]:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return class_list(str(tmp_path / name), None)

    return classes


SAME = {
    "lines": ("c.txt", "cat\nhot dog\n"),
    "empty lines, blanks, BOM, CRLF": ("c.txt", codecs.BOM_UTF8 + b"\r\n  cat\r\n\r\nhot dog \t\r\n"),
    "old Mac": ("c.txt", "cat\rhot dog"),
    "no ending": ("classes", "cat\nhot dog"),
    "trailing commas": ("c.txt", "cat,\nhot dog,\n"),
    "a pasted list": ("c.txt", '"cat",\n"hot dog"\n'),
    "bullets": ("c.txt", "- cat\n- hot dog\n"),
    "JSON": ("c.json", '[\n  "cat",\n  "hot dog"\n]\n'),
    "JSON in text": ("c.txt", '["cat", "hot dog"]'),
    "id2label": ("c.json", '{"1": "hot dog", "0": "cat"}'),
    "YAML": ("c.yaml", "- cat\n- hot dog\n"),
    "YAML with texts": ("c.yml", "cat:\nhot dog: []\n"),
    "YOLO": ("data.yaml", "path: x\ntrain: a\nval: b\nnames:\n  0: cat\n  1: hot dog\n"),
    "CSV": ("c.csv", "id,Name\n0,cat\n1,hot dog\n"),
    "CSV of one column": ("c.csv", "name\ncat\nhot dog\n"),
    "CSV without header": ("c.csv", "cat\nhot dog\n"),
    "Excel in Europe": ("c.csv", codecs.BOM_UTF8 + b"id;class;more\r\n0;cat;\r\n1;hot dog;x\r\n;;\r\n"),
    "TSV": ("c.tsv", "label\tcount\ncat\t3\nhot dog\t4\n"),
}


@pytest.mark.parametrize("file", SAME.values(), ids=SAME)
def test_a_class_list_is_read_from_what_people_have(file, classes):
    found = classes(*file)
    assert list(found) == ["cat", "hot dog"]
    assert not any(found.values())


def test_synsets_give_ids_and_the_texts_behind_them(classes):
    found = classes("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
    assert found == {
        "n01440764": ClassTexts(("tench", "Tinca tinca")),
        "n01443537": ClassTexts(("goldfish", "Carassius auratus")),
    }
    assert list(classes("c.txt", "n01440764 tench\nimpostor\n")) == ["n01440764 tench", "impostor"]


def test_texts_and_descriptions_come_from_json_yaml_and_columns(classes):
    expected = {"cat": ClassTexts(("tabby", "tom, the cat"), ("it meows.",)), "dog": ClassTexts()}
    assert classes("c.csv", 'name,texts,descriptions\ncat,"tabby|tom, the cat",it meows.\ndog,,\n') == expected
    assert classes("c.yaml", "cat:\n  texts: [tabby, 'tom, the cat']\n  descriptions: it meows.\ndog:\n") == expected
    assert classes("c.tsv", "name\tsynonyms\tprompts\ncat\ttabby|tom, the cat\tit meows.\ndog\t\t\n") == expected


def test_names_with_brackets_commas_and_numbers_are_names(classes):
    assert list(classes("c.txt", "[other]\ncrane, bird\n")) == ["[other]", "crane, bird"]
    assert list(classes("c.txt", "1 euro\n2 euro\n5 euro\n")) == ["1 euro", "2 euro", "5 euro"]
    assert list(classes("c.txt", "0\n1\n2\n")) == ["0", "1", "2"]
    assert list(classes("c.txt", "a\x85b\nc\u2028d\n")) == ["a\x85b", "c\u2028d"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.json", '["cat", ', "is not JSON"),
        ("c.json", "", "is not JSON"),
        ("c.json", '{"cat": 3}', "'cat' has 3; expected a text"),
        ("c.json", '{"cat": [], "cat": []}', "'cat' is there more than once"),
        ("c.json", '["cat", ""]', "entry 1 is ''; expected a name"),
        ("c.json", '["cat", "cat"]', "there more than once"),
        ("c.yaml", "- cat\n- no\n", "entry 1 is False.*quotes"),
        ("c.yaml", "cat: [a]\ncat: [b]\n", "'cat' stands there twice, in lines 1 and 2"),
        ("c.yaml", "a: [", "is not YAML"),
        ("c.csv", "0,cat\n1,dog\n", r"no column name among its columns \(0, cat\)"),
        ("c.csv", "name,label\ncat,0\n", "has 'name', 'label' among its columns"),
        ("c.csv", "name,id\ncat,0\n,1\n", "line 3: no name"),
        ("c.csv", "name,texts\ncat,a,b\n", "line 2: 3 cells under a header of 2"),
        ("c.csv", 'name,id\n"cat,1\n', "line 2: the row that begins here is not CSV"),
        ("c.csv", "name,texts,synonyms\ncat,a,b\n", "expected one column texts"),
        ("c.txt", "0 cat\n1 dog\n", "numbers its lines, such as '0 cat'; give the names alone, as in 'cat'"),
        ("c.txt", "1: cat\n2: dog\n", "numbers its lines"),
        ("c.txt", "cat\t3\ndog\t4\n", "has tabs in its lines"),
        ("c.txt", b"caf\xe9\n", r"is not UTF-8 \(byte 3\)"),
        ("c.txt", "cat\ndog\n".encode("utf-16"), "perhaps UTF-16; save it as UTF-8"),
        ("c.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "is a Git LFS pointer"),
        ("c.txt", "<!DOCTYPE html>\n<html>\n404\n", "is a web page"),
        ("c.json", '["cat", "\\ud800"]', "not whole"),
        ("c.txt", "# my classes\ncat\ndog\n", "begins with '# my classes'.*comments must go"),
        ("c.txt", "", "expected at least two"),
        ("c.txt", "cat\n", "expected at least two"),
        ("c.txt", "cat\nCat\n", "'cat' and 'Cat' differ in nothing that the teacher sees"),
    ],
)
def test_a_class_file_that_is_something_else_is_refused_with_its_name(name, content, words, classes, tmp_path):
    with pytest.raises(UserError, match=rf"^classes: .*{words}") as caught:
        classes(name, content)
    assert str(caught.value).count("classes:") == 1
    if "expected at least" not in words and "differ" not in words:
        assert str(tmp_path / name) in str(caught.value)


def test_without_a_file_or_a_list_it_is_what_the_labels_suggest(tmp_path):
    assert list(class_list(None, ["b", "a"])) == ["b", "a"]
    with pytest.raises(UserError, match="classes: not given, and the pool has no labels"):
        class_list(None, None)
    with pytest.raises(UserError, match=r"classes: '.*' is a folder; give a list, or a \.txt file"):
        class_list(str(tmp_path), None)
    with pytest.raises(UserError, match=r"classes: no file '.*none\.txt'"):
        class_list(str(tmp_path / "none.txt"), None)
    with pytest.raises(UserError, match=r"classes: 'Cat' and 'cat' differ in nothing"):
        class_list(None, ["Cat", "cat", "dog"])  # class folders, say
