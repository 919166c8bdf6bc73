"""
### A vision model checks every image

`judge` shows each image to a vision model, through Airflow's common-ai provider. `repaint` generates the rejected ones
again with another seed, and `judge_again` checks those. `publish` continues with the images that passed.

It needs `pip install 'apache-airflow-providers-common-ai[openai]'` and a
[connection](https://airflow.apache.org/docs/apache-airflow-providers-common-ai/stable/connections/pydantic_ai.html)
to a vision model, with the id `pydanticai_default`.
"""

from __future__ import annotations

from airflow.sdk import ObjectStoragePath, dag, task
from pydantic import BaseModel, Field

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import read_images

RULES = """\
You check images before they are published. You are shown an image and the prompt it was generated from.
Reject it if it does not show what the prompt describes, if it contains text that nobody asked for, or if anything in it
is deformed, such as a hand with six fingers."""


class Verdict(BaseModel):
    """The vision model's verdict on an image."""

    ok: bool = Field(description="Whether the image may be published")
    problem: str = Field(default="", description="What is wrong with it, in one sentence; empty if it is ok")


@dag(schedule=None, tags=["imagen", "example"], doc_md=__doc__, params={"output_path": "imagen-pictures"})
def imagen_quality_gate():
    paint = ImagenGenerateOperator(
        task_id="paint",
        prompt=["A violinist on stage", "A shop window full of hats", "Two hands shaping a clay bowl"],
        seed=1,
        output_path="{{ params.output_path }}/{{ run_id }}",
    )

    @task
    def judge(images, task_id):
        from airflow.providers.common.ai.hooks.pydantic_ai import PydanticAIHook
        from pydantic_ai import BinaryContent

        agent = PydanticAIHook("pydanticai_default").create_agent(Verdict, instructions=RULES)
        passed, rejected = [], []
        for image in read_images(images, task_id=task_id):
            content = BinaryContent(ObjectStoragePath(image["path"]).read_bytes(), media_type=image["mime_type"])
            verdict = agent.run_sync([f"Prompt: {image['prompt']}", content]).output
            print(image["path"], verdict)
            (passed if verdict.ok else rejected).append({**image, "problem": verdict.problem})
        return {"passed": passed, "rejected": rejected}

    @task
    def prompts(judged):
        return [{"prompt": image["prompt"], "seed": image["seed"] + 1} for image in judged["rejected"]]

    first = judge(paint.output["images"], "paint")
    repaint = ImagenGenerateOperator(
        task_id="repaint",
        prompt=prompts(first),  # skipped if nothing was rejected
        output_path="{{ params.output_path }}/{{ run_id }}",
    )
    second = judge.override(task_id="judge_again")(repaint.output["images"], "repaint")

    @task(trigger_rule="none_failed")
    def publish(first, second):
        second = second or {"passed": [], "rejected": []}
        for image in second["rejected"]:
            print("Left out:", image["path"], image["problem"])
        return [image["path"] for image in first["passed"] + second["passed"]]

    publish(first, second)


imagen_quality_gate()
