"""
### A picture book with one hero

The first task draws the hero. Each page is then drawn with the hero's image as its reference, so that the hero looks
the same throughout the book. The last task binds images and text into `book.html`, in the order of the pages.
"""

from __future__ import annotations

from airflow.sdk import ObjectStoragePath, dag, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import read_images

HERO = "a small grey mouse with round ears and a red scarf, watercolour on white paper"

PAGES = [  # what the image shows, and the text below it
    ("looks under its bed", "One cold morning, Milo could not find his left mitten."),
    ("asks an owl in a bare tree", "“Who has my mitten?” he asked the owl. “Who?” said the owl."),
    ("follows tracks in deep snow", "But somebody had left tracks, right across the field."),
    ("finds a hedgehog asleep in a mitten", "And Milo tiptoed home. He still had the right one."),
]


@dag(schedule=None, tags=["imagen", "example"], doc_md=__doc__, params={"output_path": "imagen-pictures"})
def imagen_picture_book():
    hero = ImagenGenerateOperator(
        task_id="hero",
        prompt=f"Character sheet of {HERO}, full body, plain background",
        model="bytedance/seedream-v4-text-to-image",
        output_path="{{ params.output_path }}/{{ run_id }}",
        filename="hero.{extension}",
    )
    pages = ImagenGenerateOperator(
        task_id="pages",
        prompt=[
            {"name": f"page-{number:02}", "prompt": f"The mouse in the image {scene}. It is {HERO}.", "text": text}
            for number, (scene, text) in enumerate(PAGES, start=1)
        ],
        metadata_columns=["text"],
        model="bytedance/seedream-v4-edit",
        input_images=hero.output["images"],
        aspect_ratio="4:3",
        output_path="{{ params.output_path }}/{{ run_id }}",
        filename="{name}.{extension}",
        retries=2,
    )

    @task
    def bind(images):
        from html import escape

        images = read_images(images, task_id="pages")
        figures = []
        for image in images:
            file = ObjectStoragePath(image["path"]).name
            text = escape(image["metadata"]["text"])
            figures.append(f'<figure><img src="{file}" width="800"><figcaption>{text}</figcaption></figure>')
        book = ObjectStoragePath(images[0]["path"]).parent / "book.html"
        book.write_text("\n".join(['<!doctype html><meta charset="utf-8">', *figures]), encoding="utf-8")
        return str(book)

    bind(pages.output["images"])


imagen_picture_book()
