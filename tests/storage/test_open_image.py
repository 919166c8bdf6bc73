from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import ImageFile

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage import open_image as open_image_module
from airflow_provider_imagen.storage.inspect_image import DEFAULT_MAX_PIXELS, inspect_image
from airflow_provider_imagen.storage.open_image import MAX_DECODED_PIXELS, PixelBudget, open_image
from airflow_provider_imagen.storage.resize_to_limits import resize_to_limits
from airflow_provider_imagen.storage.save_image import save_image

from .conftest import picture


@pytest.fixture
def watched(monkeypatch):
    """A small budget that records the peak of decoded pixels."""

    class Watched(PixelBudget):
        def __init__(self, pixels):
            super().__init__(pixels)
            self.lock, self.most, self.seen = threading.Lock(), 0, {}

        def loading(self, image):
            with self.lock:
                self.seen[id(image)] = image
                decoded = sum(image.width * image.height for image in self.seen.values() if is_decoded(image))
                self.most = max(self.most, decoded)

    def is_decoded(image):
        try:
            return image.im is not None
        except ValueError:  # it is closed
            return False

    budget = Watched(100_000)
    real = ImageFile.ImageFile.load_prepare

    def load_prepare(self):
        real(self)
        budget.loading(self)
        time.sleep(0.005)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", load_prepare)
    monkeypatch.setattr(open_image_module, "PIXEL_BUDGET", budget)
    return budget


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "TIFF"])
def test_all_threads_together_decode_no_more_than_the_budget(watched, tmp_path, image_format):
    data = picture(image_format, size=(150, 100))  # 15,000 pixels: six fit decoded, or one during conversion

    def save(number):
        wanted = ("png", "jpeg", "webp", None)[number % 4]
        return save_image(data, folder=tmp_path, stem=str(number), image_format=wanted, thumbnail_pixels=32)

    with ThreadPoolExecutor(16) as pool:
        stored = list(pool.map(save, range(32)))
    assert {kept.notes for kept in stored} == {()}
    assert all(kept.file.thumbnail for kept in stored)
    assert 0 < watched.most <= watched.pixels
    assert watched.free == watched.pixels


def test_an_image_larger_than_the_budget_is_decoded_alone(watched, tmp_path):
    data = picture("TIFF", size=(400, 300))
    with ThreadPoolExecutor(8) as pool:
        assert {info.width for info in pool.map(inspect_image, [data] * 8)} == {400}
    assert watched.most == 120_000
    assert watched.free == watched.pixels


@pytest.mark.parametrize("data", [b"no picture", picture()[:-40], picture("JPEG")[:300]])
def test_a_failed_decode_returns_its_share_of_the_budget(watched, tmp_path, data):
    for _ in range(5):
        with pytest.raises(BadImageError):
            save_image(data, folder=tmp_path, stem="a", image_format="webp", thumbnail_pixels=8)
        with pytest.raises(BadImageError):
            resize_to_limits(data, max_side_pixels=8)
    assert watched.free == watched.pixels


def test_closing_an_image_frees_its_pixels_and_its_share_of_the_budget(watched):
    with open_image(picture()) as image:
        image.load()
        assert watched.free == watched.pixels - 64 * 48
    with pytest.raises(ValueError, match="closed"):
        image.getpixel((0, 0))
    assert watched.free == watched.pixels


def test_every_conversion_of_the_largest_image_fits_the_budget():
    assert MAX_DECODED_PIXELS >= 4 * DEFAULT_MAX_PIXELS


def test_waiting_threads_continue_when_budget_is_released():
    budget = PixelBudget(10)
    order = []

    def take(pixels):
        with budget.reserve(pixels):
            order.append(pixels)

    with budget.reserve(8):
        threads = [threading.Thread(target=take, args=(pixels,)) for pixels in (3, 10, 99)]
        for thread in threads:
            thread.start()
        with budget.reserve(2):
            order.append("still room for the small")
        assert order == ["still room for the small"]
    for thread in threads:
        thread.join(5)
    assert sorted(order[1:]) == [3, 10, 99]
