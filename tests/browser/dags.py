"""DAGs for the browser check, besides the examples: several tasks, several models, some failures."""

from __future__ import annotations

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import dag

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import review_form

PROMPTS = [
    "A lighthouse on a cliff at dawn, long exposure",
    "A raccoon eating ice-cream, watercolour on rough paper, soft morning light, the cone slightly melting",
    "An old town square in the rain",
    "A bowl of oranges, oil painting",
    "Mountains above the clouds",
    "A street market at dusk, lanterns",
]


@dag(schedule=None, tags=["browser"], params={"output_path": "pictures"})
def many_pictures():
    ImagenGenerateOperator(
        task_id="posters",
        prompt=[{"prompt": prompt, "metadata": {"page": page}} for page, prompt in enumerate(PROMPTS, start=1)],
        num_images=2,
        seed=7,
        aspect_ratio="3:4",
        output_path="{{ params.output_path }}",
        thumbnail_pixels=320,
        on_filtered="accept",
        on_failure="accept",
    )
    ImagenGenerateOperator.partial(
        task_id="banners", aspect_ratio="16:9", output_path="{{ params.output_path }}"
    ).expand(prompt=PROMPTS[:3])
    ImagenGenerateOperator(task_id="not_stored", prompt="A boat in the fog")


many_pictures()


@dag(schedule=None, tags=["browser"], params={"output_path": "pictures"})
def growing_pictures():
    ImagenGenerateOperator(
        task_id="pictures",
        prompt=[f"A growing tree, ring {number}" for number in range(30)],
        concurrency=1,
        output_path="{{ params.output_path }}",
    )


growing_pictures()


@dag(schedule=None, tags=["browser"], params={"output_path": "pictures"})
def partly_rejected():
    ImagenGenerateOperator.partial(
        task_id="paint",
        output_path="{{ params.output_path }}",
        map_index_template="{{ task.prompt['name'] }}",
    ).expand(
        prompt=[
            {"prompt": PROMPTS[0], "name": "lighthouse"},
            {"prompt": PROMPTS[2], "name": "square", "aspect_ratio": "2:1"},
            {"prompt": PROMPTS[4], "name": "mountains"},
        ]
    )


partly_rejected()


@dag(schedule=None, tags=["browser"], params={"output_path": "pictures"})
def one_model():
    ImagenGenerateOperator(task_id="paint", prompt=PROMPTS[0], output_path="{{ params.output_path }}")


one_model()


@dag(schedule=None, tags=["browser"], params={"output_path": "pictures"})
def three_models():
    for model in ("google/imagen-4.0-generate-001", "flux/schnell", "openai/gpt-image-1"):
        ImagenGenerateOperator(
            task_id=model.partition("/")[0],
            prompt=[prompt for prompt in PROMPTS if "market" not in prompt],  # one of which fails
            model=model,
            output_path="{{ params.output_path }}",
            on_failure="accept" if model.startswith("flux") else "fail",
            retries=0,
        )


three_models()


@dag(schedule=None, tags=["browser"], params={"output_path": "pictures"})
def many_to_review():
    stamps = ImagenGenerateOperator(
        task_id="stamps",
        prompt=[f"A postage stamp, number {number}" for number in range(1, 31)],
        output_path="{{ params.output_path }}",
    )
    stamps >> HITLOperator(task_id="review", subject="Which stamps are good?", **review_form("stamps"))


many_to_review()


@dag(schedule=None, tags=["browser"], params={"output_path": "pictures"})
def compared_models():
    """Three models paint three prompts, one of which fails, and one of them paints another."""
    imagen, *others = ("imagen-3.0-generate-002", "flux/schnell", "bytedance/seedream-v4-text-to-image")
    items = [
        {"prompt": prompt, "model": model, "name": name, "metadata": {"season": "autumn"}}
        for prompt, name in ((PROMPTS[1], "raccoon"), (PROMPTS[3], "oranges"), (PROMPTS[0], "lighthouse"))
        for model in (imagen, *others)
    ]
    ImagenGenerateOperator(
        task_id="paint",
        prompt=[*items, {"prompt": PROMPTS[2], "model": imagen, "name": "square"}],
        seed=7,
        output_path="{{ params.output_path }}",
        on_failure="accept",
    )


compared_models()


@dag(schedule=None, tags=["browser"], params={"output_path": "pictures"})
def two_pages():
    ImagenGenerateOperator(
        task_id="stamps",
        prompt=[f"A postage stamp, number {number}" for number in range(70)],
        output_path="{{ params.output_path }}",
        thumbnail_pixels=320,
        concurrency=16,
    )


two_pages()
