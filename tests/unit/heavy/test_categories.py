"""Labels in the forms that people have them, and names for them that change no label."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import ImageFolder

from visionserve_tools.archive import groups, imagenet
from visionserve_tools.archive.categories import read_labels, read_map
from visionserve_tools.archive.groups import find_groups, read_groups

LABELS = ("cat", "dog", "horse")
FORMS: dict[str, tuple[str, str]] = {
    "a line each": ("labels.txt", "cat\ndog\nhorse\n"),
    "no line feed at the end": ("labels.txt", "cat\ndog\nhorse"),
    "blank lines at the end": ("labels.txt", "cat\ndog\nhorse\n\n  \n\n"),
    "windows": ("labels.txt", "\ufeffcat\r\n dog\r\nhorse\r\n\r\n"),
    "torchserve": ("index_to_name.json", '{"0": "cat", "1": "dog", "2": "horse"}'),
    "torchserve, another order": ("index_to_name.json", '{"2": "horse", "0": "cat", "1": "dog"}'),
    "torchserve with ids": (
        "index_to_name.json",
        '{"0": ["n02121808", "cat"], "1": ["n02084071", "dog"], "2": ["n02374451", "horse"]}',
    ),
    "list": ("labels.json", '["cat", "dog", "horse"]'),
    "list, by its content": ("labels", '\n["cat", "dog", "horse"]'),
    "hugging face": (
        "config.json",
        '{"model_type": "resnet", "id2label": {"0": "cat", "1": "dog", "2": "horse"}, '
        '"label2id": {"cat": 0, "dog": 1, "horse": 2}}',
    ),
    "ImageFolder's class_to_idx": ("classes.json", '{"dog": 1, "cat": 0, "horse": 2}'),
    "csv": ("labels.csv", "index,label\n0,cat\n1,dog\n2,horse\n"),
    "csv, another order": ("labels.csv", "name,id\nhorse,2\ncat,0\n\ndog,1\n\n"),
    "csv, class is the index": ("labels.csv", "class,label\n0,cat\n1,dog\n2,horse\n"),
    "csv, class is the label": ("labels.csv", "Class,Index\ncat,0\ndog,1\nhorse,2\n"),
    "csv, label is the index": ("labels.csv", "label,name\n0,cat\n1,dog\n2,horse\n"),
    "csv, more columns": (
        "labels.csv",
        'wnid,class id,"class name",count\nn1,1,dog,7\nn0,0,cat,7\nn2,2,horse,7\n',
    ),
    "csv without headings": ("labels.csv", "0,cat\n1,dog\n2,horse\n"),
    "csv of a spreadsheet": (
        "labels.csv",
        '\ufeff"Index";"Label"\r\n0;"cat"\r\n1;dog\r\n2;horse\r\n',
    ),
    "tsv": ("labels.tsv", "label\tindex\ncat\t0\ndog\t1\nhorse\t2\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_in_the_order_of_their_indices(form: str, tmp_path: Path) -> None:
    name, text = FORMS[form]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_labels(tmp_path / name) == LABELS


def test_labels_that_look_like_something_else(tmp_path: Path) -> None:
    labels = (
        "1,2-dichloroethane",
        "747 jet",
        "a, b",
        "[unknown]",
        "4: four",
        "猫",
        "n02121808 cat",
    )
    (tmp_path / "labels.txt").write_text("\n".join(labels), encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == labels
    for numbered in (
        *(("3D printer", "18-wheeler"), ("1 star", "2 stars", "3 stars"), ("stage 1", "stage 2")),
        *(("0", "1", "10", "2"), ("1.5 l", "0.5 l"), ("2024-01", "2024-02"), ("7 Up", "1 Up")),
    ):
        (tmp_path / "labels.txt").write_text("\n".join(numbered))
        assert read_labels(tmp_path / "labels.txt") == numbered
    (tmp_path / "labels.json").write_text('["0 cat", "1 dog"]')
    assert read_labels(tmp_path / "labels.json") == ("0 cat", "1 dog")
    (tmp_path / "labels.csv").write_text('index,label\n0,"a, b"\n1,c\n')
    assert read_labels(tmp_path / "labels.csv") == ("a, b", "c")


def test_class_folders_are_those_of_torchvision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b", "a10", "a2", "B", "猫", "a b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    labels = read_labels(tmp_path)
    assert labels == tuple(ImageFolder(tmp_path).classes)
    assert capsys.readouterr().err == (
        f"{tmp_path}: 7 class folders: 0 B, 1 a b, 2 a10, 3 a2, 4 b, 5 link, 6 猫.\n"
    )


TEN = "".join(f"{number} {number:x}\n" for number in range(10))
WRONG: list[tuple[str, str | bytes, str]] = [
    ("labels.txt", "alp\n\nvalley\n", "line 2 is blank; each class needs a label."),
    ("labels.txt", "alp\nvalley\nalp\n", "alp stands in line 1 and line 3."),
    ("labels.txt", "alp\nval\aley\n", r"line 2 holds a control character ('val\x07ley')."),
    ("labels.txt", "Täler\n".encode("latin-1"), "is not UTF-8 (byte 0xe4 at 1); save it as UTF-8."),
    ("labels.txt", "alp\n".encode("utf-16"), "is not UTF-8 (byte 0xff at 0); save it as UTF-8."),
    ("labels.txt", "", "holds no label."),
    ("labels.txt", "\n \n", "holds no label."),
    (
        "labels.txt",
        "0,dog\n1,cat\n",
        "line 1 is an index with a label (0,dog): call the file labels.csv and begin it with the "
        "line index,label; or leave out the indices.",
    ),
    (
        "labels.txt",
        "dog\n1; cat\n",
        "line 2 is an index with a label (1; cat): call the file labels.csv and begin it with the "
        "line index,label; or leave out the indices.",
    ),
    *(
        ("labels.txt", text, f"each line carries its number ({text.splitlines()[0]}): write the ")
        for text in (
            *("0 dog\n1 cat\n", "1: a\n2: b\n", "01_dog\n00_cat\n", "[0] dog\n[1] cat\n"),
            *("0. 3D printer\n1. 18-wheeler\n", "cat 0\ndog 1\n", "cat: 1\ndog: 0\n"),
            *("cat,0\ndog,1\n", "cat\t0\ndog\t1\n", "10 a\n" + TEN),
        )
    ),
    ("a.json", '["1 cat", "0 dog"]', "the labels are not in the order of their numbers (1 cat is"),
    ("a.json", '{"1": "cat (1)", "0": "dog (2)"}', "the labels are not in the order of their nu"),
    (
        "index_to_name.json",
        '{"0": "cat", "2": "dog"}',
        "has 2 labels, but none for index 1; indices begin at 0 and leave none out.",
    ),
    (
        "index_to_name.json",
        '{"1": "cat", "2": "dog"}',
        "has 2 labels, but none for index 0; indices begin at 0 and leave none out.",
    ),
    ("index_to_name.json", '{"0": "cat", "0": "dog"}', "0 stands there twice."),
    ("index_to_name.json", '{"0": "cat", "00": "dog"}', "index 0 stands in index 0 and index 00."),
    ("index_to_name.json", '{"0": "cat", "1": "cat"}', "cat stands in index 0 and index 1."),
    ("index_to_name.json", '{"0": "cat", "1": " "}', "index 1 is blank; each class needs a label."),
    ("a.json", '{"cat": "x"}', "index cat is no index, 0, 1, 2 and so on (cat)."),
    ("a.json", '{"cat": 0, "dog": 0}', "gives one index to two labels."),
    ("a.json", '["cat", ""]', "index 1 is blank; each class needs a label."),
    ("a.json", "[]", "holds no label."),
    ("a.json", "{}", "holds no label."),
    (
        "a.json",
        '["cat", 1]',
        'is no JSON list of labels, ["cat", "dog"], nor object of indices to labels, '
        '{"0": "cat", "1": "dog"}.',
    ),
    (
        "a.json",
        '{"0": {"name": "cat"}}',
        'is no JSON list of labels, ["cat", "dog"], nor object of indices to labels, '
        '{"0": "cat", "1": "dog"}.',
    ),
    ("a.json", "{0: x}", "is no JSON (Expecting property name enclosed in double quotes: "),
    ("a.csv", "index,label\n0,cat\n2,dog\n", "has 2 labels, but none for index 1; "),
    ("a.csv", "index,label\n0,cat\n0,dog\n", "index 0 stands in line 2 and line 3."),
    ("a.csv", "index,label\n0,cat\n1,\n", "line 3 is blank; each class needs a label."),
    ("a.csv", "index,label\n0,cat\n1,dog,2\n", "line 3 has 3 columns, the first line 2."),
    ("a.csv", "index,label\n", "holds no label."),
    ("a.csv", "", "holds no label."),
    ("a.csv", "cat\ndog\n", "needs a column index and a column label, named in its first line."),
    ("a.csv", "index,label\n0,cat\nx,dog\n", "needs a column index and a column label"),
    ("a.csv", "0,1\n1,2\n", "needs a column index and a column label"),
]


@pytest.mark.parametrize(("name", "content", "complaint"), WRONG)
def test_labels_that_are_wrong_are_named_with_the_cause(
    name: str, content: str | bytes, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="^" + re.escape(f"{file}: {complaint}")):
        read_labels(file)


@pytest.mark.parametrize("form", ["{} {:x}", "{:02}_{:x}", "{}", "{:02}", "1{}"])
def test_class_folders_with_numbers_are_in_their_order(form: str, tmp_path: Path) -> None:
    """ImageFolder sorts names, by which 10 comes before 2. A network's owner may not know."""
    for number in range(11):
        (tmp_path / form.format(number, number)).mkdir()
    if form in ("{} {:x}", "{}"):
        odd = form.format(10, 10)
        with pytest.raises(ValueError, match=rf"not in the order .* \({odd} is class 2\): give"):
            read_labels(tmp_path)
    else:
        assert read_labels(tmp_path) == tuple(sorted(path.name for path in tmp_path.iterdir()))


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: holds no class folders.")):
        read_labels(tmp_path)
    for name in ("val", "train"):
        (tmp_path / name).mkdir()
    said = f"{tmp_path}: is split into train and val; give the folder that holds the classes"
    with pytest.raises(ValueError, match=re.escape(said)):
        read_labels(tmp_path)


def test_a_map_names_labels_in_each_language_or_in_all(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text('{"cat": "猫"}', encoding="utf-8")
    assert read_map(file, LABELS) == {"en": {"cat": "猫"}, "zh": {"cat": "猫"}}
    file.write_text('{"names": {"zh": {"cat": "猫", "dog": "狗"}}}', encoding="utf-8")
    assert read_map(file, LABELS) == {"zh": {"cat": "猫", "dog": "狗"}}
    file.write_text('{"names": "nouns"}', encoding="utf-8")
    assert read_map(file, ("names",)) == {"en": {"names": "nouns"}, "zh": {"names": "nouns"}}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{alp: x}", "is no JSON ("),
        (["alp"], "is no JSON object of labels to names"),
        ({"alp": 1}, "is no JSON object of labels to names"),
        ({"names": {"zh": ["x"]}}, "is no JSON object of labels to names"),
        ({"names": {"fr": {"alp": "x"}}}, "no such language: fr; there are en, zh."),
        ({"alps": "x"}, "no such label: alps."),
        ({"names": {"zh": {"alps": "x"}}}, "no such label: alps."),
        ({"alp": " "}, "alp's name is blank; each class needs a label."),
        ({"alp": "x", "valley": "x"}, "x stands in alp's name and valley's name."),
        ({"alp": "valley"}, "valley stands in alp's name and valley's name."),
        ('{"alp": "x", "alp": "y"}', "alp stands there twice."),
    ],
)
def test_a_map_that_is_wrong_is_named_with_the_cause(
    content: Any, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "map.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match="^" + re.escape(f"{file}: {complaint}")):
        read_map(file, ("alp", "valley"))


ANIMALS = ("beagle", "tabby", "7", "pug", "crane", "crane", "Persian cat")


def grouped(tmp_path: Path, content: Any) -> dict[str, tuple[int, ...]]:
    file = tmp_path / "groups.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_groups(file, ANIMALS).members


def test_groups_have_labels_indices_and_ranges(tmp_path: Path) -> None:
    """A text that is a label is that label; what nobody names is in a group of its own."""
    plain = {"dog": ["pug", "beagle"], " cat ": [6, "1"]}
    assert grouped(tmp_path, plain) == {"dog": (0, 3), "cat": (1, 6), "other": (2, 4, 5)}
    assert grouped(tmp_path, {"7": ["7", "4-5"], "rest": ["0-1", 3, "6-6"]}) == {
        "7": (2, 4, 5),
        "rest": (0, 1, 3, 6),
    }
    named = {"zh": {"dog": "狗", "thing": "其他"}, "en": {"dog": "a dog"}}
    whole = {"groups": {"dog": [0, 3]}, "other": "thing", "names": named}
    assert grouped(tmp_path, whole) == {"dog": (0, 3), "thing": (1, 2, 4, 5, 6)}
    assert read_groups(tmp_path / "groups.json", ANIMALS).names == named


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{dog: x}", "is no JSON ("),
        ('{"dog": [0], "dog": [1]}', "dog stands there twice."),
        ({"dog": [0], " dog": [1]}, "dog stands in group 'dog' and group ' dog'."),
        ({" ": [0]}, "group ' ' is blank; each class needs a label."),
        ([["beagle"]], "is no JSON object of groups to lists of labels, indices and ranges, "),
        ({}, "is no JSON object of groups"),
        ({"groups": {}}, "is no JSON object of groups"),
        ({"dog": "beagle"}, "is no JSON object of groups"),
        ({"groups": {"dog": [0]}, "other": 1}, "is no JSON object of groups"),
        ({"groups": {"dog": [0]}, "name": {}}, "takes groups, other and names, not name."),
        ({"groups": {"dog": [0]}, "names": {"zh": {"cat": "猫"}}}, "no such label: cat."),
        ({"groups": {"dog": [0]}, "names": {"fr": {}}}, "no such language: fr; there are en, zh."),
        ({"groups": {"dog": [0], "cat": [1]}, "names": {"zh": {"cat": "dog"}}}, "dog stands in "),
        ({"dog": []}, "dog is empty; a group has a member at least."),
        ({"dog": [0], "cat": ["beagle"]}, "beagle (0) stands in dog and cat."),
        ({"dog": [0, "0-1"]}, "beagle (0) stands in dog and dog."),
        ({"dog": ["beagel"]}, "dog: there is no class beagel; the closest is beagle."),
        ({"dog": ["Tabby"]}, "dog: there is no class Tabby; the closest is tabby."),
        ({"dog": [None]}, "dog: there is no class None; the closest is "),
        ({"dog": [True]}, "dog: there is no class True; the closest is "),
        ({"dog": [1.0]}, "dog: there is no class 1.0; the closest is "),
        ({"dog": [["beagle"]]}, "dog: there is no class ['beagle']; the closest is beagle."),
        ({"bird": ["crane"]}, "bird: 2 classes are crane; give its index."),
        ({"dog": [7]}, "dog: 7 is beyond the 7 classes, 0 to 6."),
        ({"dog": [-1]}, "dog: -1 is beyond the 7 classes, 0 to 6."),
        ({"dog": ["5-7"]}, "dog: 5-7 is beyond the 7 classes, 0 to 6."),
        ({"dog": ["3-0"]}, "dog: the range 3-0 ends before it begins."),
        (
            {"other": [0]},
            "6 classes, such as tabby, are in no group, and other is a group: name them with "
            '"other": "something else".',
        ),
    ],
)
def test_groups_that_are_wrong_are_named_with_the_cause(
    content: Any, complaint: str, tmp_path: Path
) -> None:
    said = "^" + re.escape(f"{tmp_path / 'groups.json'}: {complaint}")
    with pytest.raises(ValueError, match=said) as refused:
        grouped(tmp_path, content)
    assert "\n" not in str(refused.value)


def test_groups_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert find_groups("everyday") == groups.FOLDER / "everyday.json"
    (tmp_path / "mine.json").touch()
    assert find_groups(str(tmp_path / "mine.json")) == tmp_path / "mine.json"
    said = "mine: no such file of groups, nor one of config/groups: everyday."
    with pytest.raises(ValueError, match=re.escape(said)):
        find_groups("mine")


# What WordNet says of ImageNet's order, and labels that mean another thing than they seem to.
EVERYDAY: dict[str, tuple[range | str, ...]] = {
    "dog": (range(151, 269),),
    "wolf or fox": (range(269, 281),),
    "cat": (range(281, 286),),
    "big cat": (range(286, 294),),
    "bear": (range(294, 298), "giant panda"),
    "monkey or ape": (range(365, 385),),
    "whale or seal": (range(147, 151),),
    "bird": (range(7, 25), range(80, 101), range(127, 147)),
    "fish": (range(7), range(389, 398)),
    "frog, lizard or turtle": (range(25, 52),),
    "snake": (range(52, 69),),
    "spider": (range(70, 80),),
    "insect": (range(300, 327),),
    "sea creature or snail": (range(107, 127), range(327, 330)),
    "hoofed animal or elephant": (range(339, 356), "Indian elephant", "tusker"),
    "mushroom": ("mushroom", range(991, 998)),
    "fruit": (range(948, 958),),
    "vegetable": (range(936, 947), "corn", "ear"),
    "food": ("plate", "pizza", "ice cream"),
    "landscape": ("alp", *(range(972, 981),)),
    "truck, bus or tractor": ("crane", "amphibian", "school bus"),
    "tool or hardware": ("plane", "nail"),
    "musical instrument": ("pick", "drumstick", "upright", "organ"),
    "boat or ship": ("pirate", "wreck"),
    "computer or electronics": ("mouse", "notebook", "iPod"),
    "clothing": ("cardigan", "stole", "groom"),
    "weapon or armor": ("bow", "tank"),
    "building": ("beacon", "vault"),
    "bridge, fence or other structure": ("brass", "viaduct"),
    "kitchenware": ("mortar", "coffee mug"),
}


def test_everyday_groups_have_each_class_in_one_and_where_it_belongs() -> None:
    labels = tuple(one.label for one in imagenet.classes())
    found = read_groups(find_groups("everyday"), labels)
    assert sorted(sum(found.members.values(), ())) == list(range(1000))
    assert 35 <= len(found.members) <= 50 and "other" not in found.members
    assert min(map(len, found.members.values())) >= 4
    assert found.names["zh"].keys() == found.members.keys()
    of = {labels[index]: group for group, indices in found.members.items() for index in indices}
    misplaced = {
        label: of[label]
        for group, members in EVERYDAY.items()
        for member in members
        for label in ([member] if isinstance(member, str) else labels[member.start : member.stop])
        if of[label] != group
    }
    assert misplaced == {}
