"""ImageNet's classes, by their WordNet ids, in English and in Chinese."""

import unicodedata
from pathlib import Path

from scripts.archive import imagenet
from visionserve.models import IMAGENET_CATEGORIES


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
    (chinese,) = imagenet.translate(IMAGENET_CATEGORIES).values()
    names = dict(zip(IMAGENET_CATEGORIES, chinese, strict=True))
    assert {label: names[label] for label in known} == known


def test_the_users_own_name_goes_before_both_languages() -> None:
    renamed = tuple("雪山" if label == "alp" else label for label in IMAGENET_CATEGORIES)
    assert imagenet.translate(renamed)["zh"][970] == "雪山"
