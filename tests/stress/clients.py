"""Clients that send a model images with known answers, and record what each request got."""

import base64
import io
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import requests
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from visionserve.models import MODELS, FullyConvolutional
from visionserve_tools import paths, photos
from visionserve_tools.archive.recipe import Recipe, build
from visionserve_tools.archive.weights import FALLBACK, load_state_dict, resolve
from visionserve_tools.server.client import Client
from visionserve_tools.server.ports import free_ports
from visionserve_tools.server.torchserve import TorchServe, client_of

MODEL = FALLBACK
CLASSES = 1000
LARGE = 300_000
TRUE = 1e-3
TRIES = 5
RETRIES = 6
VIEWS = ("none", "five_crop", "ten_crop", "dense")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
LENGTHS = (1, 2, 1, 5, 1, 3)
REFUSED_FORMATS = ("PNG", "JPEG", "GIF", "TIFF")
REFUSALS = ("truncated_image", "unsupported_pixels")
ANSWERED = (200, 207, 415, 422)
REFUSED = -1

Verdict = Literal["right", "wrong", "refused", "lost"]


class WrongAnswerError(Exception):
    """The server's answers are already wrong before the load begins."""


@dataclass(frozen=True)
class Sent:
    """The record of one request, with all its tries.

    Attributes:
        began: when the request was due, by `time.monotonic`.
        seconds: the time from then until the request ended.
        setbacks: the failed tries, in order: each one's status or exception name.
        verdict: `right` or `wrong` for an answer, also one that says which of its images are
            refused; otherwise `refused` if the last try got another status, and `lost` if it got no
            response.
    """

    began: float
    seconds: float
    setbacks: tuple[str, ...]
    verdict: Verdict

    @property
    def ended(self) -> float:
        """When the request ended, by `time.monotonic`."""
        return self.began + self.seconds


@dataclass(frozen=True)
class Question:
    """The content of one request.

    Attributes:
        images: one or several encoded images.
        tta: the TTA mode.
        refused: the indices of the images that a server refuses once it has decoded them.
    """

    images: tuple[bytes, ...]
    tta: str = "none"
    refused: frozenset[int] = frozenset()

    def send(self, client: Client, model: str, top_k: int) -> requests.Response:
        """Send the request, with random bytes after each image so that no cache has the answer.

        An image that is refused gets none. No cache has it, and one JPEG in 300 that is cut off
        would be a whole one for libjpeg, as it ends at the first marker among them. One image is
        sent as it is, several as a list in JSON.
        """
        images = [
            image if index in self.refused else image + os.urandom(8)
            for index, image in enumerate(self.images)
        ]
        options: dict[str, Any] = {"tta": self.tta, "top_k": top_k}
        if len(images) == 1:
            return client.predict(model, images[0], **options)
        body = json.dumps({"data": [base64.b64encode(image).decode() for image in images]})
        return client.predict(model, body.encode(), content_type="application/json", **options)


def plain(tta: str = "none") -> list[Question]:
    """Return a question for each small packaged photograph.

    A worker makes tensors of the same shape from all of them.

    Args:
        tta: the TTA mode of all the questions.
    """
    images = [data for path in photos.packaged() if len(data := path.read_bytes()) < LARGE]
    return [Question((image,), tta) for image in images]


def large() -> Question:
    """Return a question whose forward pass is over five crops, and gives its memory back."""
    buffer = io.BytesIO()
    Image.open(photos.packaged()[0]).convert("RGB").resize((1024, 256)).save(buffer, "PNG")
    return Question((buffer.getvalue(),), "dense")


def refused(format: str) -> bytes:
    """Return an image of 24 million pixels that is refused once it is decoded.

    A TIFF has pixels of floats, which are not supported; other images are cut off.
    """
    buffer = io.BytesIO()
    if format == "TIFF":
        Image.new("F", (6000, 4000)).save(buffer, format, compression="tiff_lzw")
        return buffer.getvalue()
    mode, colour = ("P", 90) if format == "GIF" else ("RGB", (90, 120, 60))
    Image.new(mode, (6000, 4000), colour).save(buffer, format)
    return buffer.getvalue()[: int(0.7 * buffer.tell())]


def mixed(count: int = 48) -> list[Question]:
    """Return questions that vary in image size, format, TTA mode and number of images.

    They are drawn with a fixed seed, so that they are the same in each run. They cover each TTA
    mode with each number of images, each format, and sides from 48 to 1,600 pixels, both
    landscape and portrait. One image in eleven is refused, alone or between others.
    """
    random = Random(0)
    photographs = [Image.open(path).convert("RGB") for path in photos.packaged()]
    large = itertools.cycle([refused(format) for format in REFUSED_FORMATS])

    def is_refused(number: int) -> bool:
        return number % 11 == 5

    def image(number: int) -> bytes:
        if is_refused(number):
            return next(large)
        size = random.randint(48, 600), random.randint(48, 600)
        if number % 16 == 0:
            size = random.choice(((1200, 900), (900, 1200), (1024, 256), (96, 1600)))
        buffer = io.BytesIO()
        resized = random.choice(photographs).resize(size, Image.Resampling.BILINEAR)
        resized.save(buffer, FORMATS[number % len(FORMATS)])
        return buffer.getvalue()

    counter = itertools.count()
    questions = []
    for index in range(count):
        length = LENGTHS[index // len(VIEWS) % len(LENGTHS)]
        numbers = [*itertools.islice(counter, length)]
        refusals = frozenset(place for place, number in enumerate(numbers) if is_refused(number))
        view = VIEWS[index % len(VIEWS)]
        questions.append(Question(tuple(map(image, numbers)), view, refusals))
    return questions


class Load:
    """Clients of one model that compare its answers with the ones that it gives at the start.

    Probabilities are compared for each class, within 0.0001.

    Args:
        state: the state folder of the server.
        questions: the questions that the clients send, in turn.
        model: the name of the model.
        top_k: the number of predictions in an answer; by default all of ImageNet's classes.
        apart: how far a probability may be from PyTorch's, which computes in FP32.
        weights: the model's weights, as for `reference`.

    Raises:
        WrongAnswerError: a question gets no answer, the probabilities of all classes do not add up
            to 1, or PyTorch computes others for a photograph with the same weights.
    """

    def __init__(
        self,
        state: Path,
        questions: Sequence[Question],
        model: str = MODEL,
        top_k: int = CLASSES,
        apart: float = TRUE,
        weights: Path | None = None,
    ) -> None:
        self._state = state
        self._model = model
        self._top_k = top_k
        client = client_of(state)
        self._exam = [(question, self._first_answer(client, question)) for question in questions]
        if top_k == CLASSES:
            self._check_exam(apart, weights)
        self._turns = itertools.count()

    def _first_answer(self, client: Client, question: Question) -> NDArray[np.float64]:
        for _ in range(TRIES):
            response = question.send(client, self._model, self._top_k)
            if _is_answered(response):
                return _distributions(response)
            time.sleep(1)
        raise WrongAnswerError(f"{response.status_code}: {response.text[:200]}")

    def _check_exam(self, apart: float, weights: Path | None) -> None:
        for _, answer in self._exam:
            sums = answer.sum(axis=1)
            if not np.allclose(sums[sums >= 0], 1, atol=1e-3):
                raise WrongAnswerError(f"Probabilities add up to {sums}.")
        for question, answer in self._exam:
            if question.tta == "none" and len(question.images) == 1:
                found = answer[0].argmax(), answer[0].max()
                expected = reference(question.images[0], self._model, weights)
                if not np.allclose(answer[0], expected, atol=apart):
                    raise WrongAnswerError(
                        f"The server says class {found[0]} with {found[1]:.3f}; PyTorch gives that "
                        f"class {expected[found[0]]:.3f}."
                    )
                return

    @contextmanager
    def steady(
        self, clients: int, retries: int = 0, patience: float = 0, pause: float = 0
    ) -> Iterator[list[Sent]]:
        """Run clients until the block ends, and list the requests that they have sent.

        Each client sends one request after the other. Together they take the questions in turn,
        and go on where an earlier block ended.

        Args:
            clients: the number of clients.
            retries: the number of retries, as in `Client`.
            patience: for how many seconds a request is sent again after all retries failed, or
                after a status that `Client` does not retry, such as 404.
            pause: the seconds that a client waits after each request.
        """
        stop = threading.Event()
        account: list[Sent] = []

        def keep_asking() -> None:
            client = client_of(self._state, retries)
            while not stop.is_set():
                number = next(self._turns)
                account.append(self.ask(client, number, time.monotonic(), patience))
                stop.wait(pause)

        with ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(keep_asking) for _ in range(clients)]
            try:
                yield account
            finally:
                stop.set()
            for future in running:
                future.result()

    def at_rate(self, rate: float, seconds: float, most: int) -> list[Sent]:
        """Send requests at a fixed rate, each once, whether or not earlier ones have ended.

        A request's time starts when it is due.

        Args:
            rate: requests per second.
            seconds: for how many seconds requests are sent.
            most: the most requests that are open at a time; larger than the server's queue, so
                that this limit never delays a request.
        """
        client = client_of(self._state)
        start = time.monotonic()
        with ThreadPoolExecutor(most) as pool:
            running = []
            for number in range(int(rate * seconds)):
                due = start + number / rate
                time.sleep(max(0.0, due - time.monotonic()))
                running.append(pool.submit(self.ask, client, number, due))
        return [future.result() for future in running]

    def ask(self, client: Client, number: int, began: float, patience: float = 0) -> Sent:
        """Send one of the questions, and send it again until it is answered or patience ends.

        Patience is in seconds from when the request began.
        """
        question, answer = self._exam[number % len(self._exam)]
        setbacks: list[str] = []
        while True:
            try:
                response = question.send(client, self._model, self._top_k)
            except (OSError, ValueError, KeyError) as error:
                setbacks.append(type(error).__name__)
                verdict: Verdict = "lost"
            else:
                setbacks += _setbacks(response)
                if _is_answered(response):
                    verdict = "right" if _is_right(response, answer) else "wrong"
                    break
                verdict = "refused"
            if time.monotonic() - began >= patience:
                break
            time.sleep(0.25)
        return Sent(began, time.monotonic() - began, tuple(setbacks), verdict)


def reference(image: bytes, name: str = MODEL, weights: Path | None = None) -> NDArray[np.float32]:
    """Classify the centre crop of an image in PyTorch alone.

    Args:
        image: the encoded image.
        name: the architecture.
        weights: a state dict; None for the packaged one.

    Returns:
        The probabilities of the classes, float32 of shape (classes,).
    """
    model = MODELS[name]
    network = FullyConvolutional(name, CLASSES, model.transforms)
    given = resolve(name, weights)
    network.network.load_state_dict(load_state_dict(given, network.network.state_dict()))
    rgb = Image.open(io.BytesIO(image)).convert("RGB")
    interpolation = InterpolationMode(model.transforms.interpolation)
    resized = functional.resize(rgb, [model.transforms.resize], interpolation)
    crop = functional.center_crop(resized, [model.transforms.crop])
    with torch.inference_mode():
        probabilities = network.eval()(torch.from_numpy(np.array(crop))[None])
    found: NDArray[np.float32] = probabilities[0].numpy()
    return found


def _answers(response: requests.Response) -> list[dict[str, Any]]:
    content = response.json()
    return content if isinstance(content, list) else [content]


def _is_answered(response: requests.Response) -> bool:
    """Tell whether each image has an answer, or is refused for what it is."""
    return response.status_code in ANSWERED and all(
        answer["error"]["code"] in REFUSALS for answer in _answers(response) if "error" in answer
    )


def _distributions(response: requests.Response) -> NDArray[np.float64]:
    """Return the probabilities in an answer, float64 of shape (images, classes).

    A row of -1 is an image that is refused for what it is. Everything else in the answer,
    such as the model's version, is ignored.
    """
    answers = _answers(response)
    found = np.zeros((len(answers), CLASSES))
    for row, answer in zip(found, answers, strict=True):
        if "error" in answer:
            row[:] = REFUSED
        for prediction in answer.get("predictions", ()):
            row[prediction["class_id"]] = prediction["probability"]
    return found


def _is_right(response: requests.Response, expected: NDArray[np.float64]) -> bool:
    try:
        answer = _distributions(response)
    except (ValueError, LookupError, TypeError):
        return False
    return answer.shape == expected.shape and bool(np.allclose(answer, expected, atol=1e-4, rtol=0))


def _setbacks(response: requests.Response) -> list[str]:
    """Return the status or exception name of each failed try of a request.

    They are the tries that urllib3 repeated, and the responses without an answer: the last one,
    and the ones that refused a key.
    """
    found = []
    for each in (*response.history, response):
        retries = each.raw.retries
        history = retries.history if retries else ()
        found += [str(tried.status or type(tried.error).__name__) for tried in history]
        if not _is_answered(each):
            found.append(str(each.status_code))
    return found


@contextmanager
def serving(
    folder: Path,
    handler: dict[str, Any],
    model: str = MODEL,
    weights: Path | None = None,
    **config: Any,
) -> Iterator[TorchServe]:
    """Serve a model with the profile `server`, on free ports.

    Args:
        folder: the folder in which `store/` and `state/` are made.
        handler: settings that replace the ones under `handler` in the profile's
            `model-config.yaml`.
        model: the architecture, which is the model's name as well; the packaged classifier.
        weights: a state dict; None for the packaged one.
        config: settings that replace the other ones in that file.
    """
    written = yaml.safe_load((paths.CONFIG / "server" / "model-config.yaml").read_text())
    written |= config
    written["handler"] |= handler
    path = folder / "model-config.yaml"
    path.write_text(yaml.safe_dump(written))
    archive = build(Recipe(model, model, "1.0", path, weights), folder / "store")
    server = TorchServe("server", folder / "state", archive.parent, free_ports(), unrecorded=True)
    server.start([f"{model}={archive.name}"])
    try:
        yield server
    finally:
        server.stop()
