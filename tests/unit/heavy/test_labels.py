"""ImageNet's classes, by their WordNet ids, in English and in Chinese."""

import unicodedata
from pathlib import Path

from visionserve.models import IMAGENET_CATEGORIES
from visionserve_tools.archive import imagenet
from visionserve_tools.archive.classes import read_categories, read_names
from visionserve_tools.archive.recipe import Recipe


def test_labels_are_torchvisions_and_named_by_their_synset() -> None:
    classes = imagenet.classes()
    assert tuple(c.label for c in classes) == IMAGENET_CATEGORIES
    renamed = {c.label for c in classes if c.label not in c.synset.split(", ")}
    assert renamed == {"crane bird", "maillot tank suit"}


def test_classes_are_in_the_order_of_their_wordnet_ids() -> None:
    ids = [c.wordnet_id for c in imagenet.classes()]
    assert ids == sorted(ids) and len(set(ids)) == 1000


def test_wordnet_ids_are_those_of_the_photographs(samples: list[Path]) -> None:
    classes = imagenet.classes()
    for path in samples:
        index, wordnet_id, *_ = path.name.split("_")
        assert classes[int(index)].wordnet_id == wordnet_id


def test_every_class_has_a_chinese_name_of_its_own() -> None:
    names = [c.chinese for c in imagenet.classes()]
    assert len(set(names)) == 1000
    latin = [name for name in names if not any("CJK" in unicodedata.name(c) for c in name)]
    assert latin == ["iPod"]


def test_well_known_names() -> None:
    known = {
        "alp": "高山雪景",
        "giant panda": "大熊猫",
        "golden retriever": "金毛寻回犬",
        "crane": "起重机",
        "crane bird": "鹤",
        "hot pot": "火锅",
        "volcano": "火山",
    }
    (chinese,) = imagenet.names().values()
    names = dict(zip(IMAGENET_CATEGORIES, chinese, strict=True))
    assert {label: names[label] for label in known} == known


def test_the_users_own_name_goes_before_the_known_one_and_no_label_changes(tmp_path: Path) -> None:
    map_file = tmp_path / "map.json"
    map_file.write_text('{"names": {"zh": {"alp": "雪山"}}}', encoding="utf-8")
    recipe = Recipe("resnet18", "resnet18", "1.0", Path("absent"), label_map=map_file)
    labels = read_categories(recipe)
    assert labels == IMAGENET_CATEGORIES
    names = read_names(recipe, labels)
    assert names.keys() == {"zh"}
    assert (names["zh"][970], names["zh"][980]) == ("雪山", "火山")
    map_file.write_text('{"alp": "meadow"}', encoding="utf-8")
    names = read_names(recipe, labels)
    assert {language: of[970] for language, of in names.items()} == {"en": "meadow", "zh": "meadow"}
    assert (names["en"][980], names["zh"][980]) == ("volcano", "火山")
