"""
The page where a person reviews the images of a task and answers a waiting human-in-the-loop task.

The page itself changes nothing: its script sends the answer to Airflow's API, which checks the visitor's permission and
records who answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
from airflow_provider_imagen.review_answer import (
    MAX_COMMENT_CHARACTERS,
    MAX_PROMPT_CHARACTERS,
    OPTION,
    PARAM,
    ReviewSubject,
    Verdict,
    read_subject,
    read_verdicts,
)

if TYPE_CHECKING:
    from airflow_provider_imagen.plugins.gallery.airflow_api import Question
    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

CHOICES: Final = {
    "favourite": "Favourite",
    "new_seed": "Again, new seed",
    "new_prompt": "Again, changed prompt",
    "reject": "Not good",
}
"""The verdicts that a person can choose for an image, with their labels on the page."""


@dataclass(frozen=True)
class ReviewItem:
    """
    An image under review.

    :param number: its number among all images of the task, from 1
    :param verdict: the verdict of the person who answered, if any
    """

    number: int
    image: GalleryImage
    verdict: Verdict | None


@dataclass(frozen=True)
class ReviewPage:
    """
    A review of images.

    :param can_answer: whether the visitor has Airflow's permission to answer
    """

    question: Question
    subject: ReviewSubject
    can_answer: bool
    option = OPTION
    param = PARAM
    choices = CHOICES
    max_comment_characters = MAX_COMMENT_CHARACTERS
    max_prompt_characters = MAX_PROMPT_CHARACTERS

    @property
    def is_open(self) -> bool:
        """Whether the visitor can answer now."""
        return self.question.is_open and self.can_answer

    @property
    def reviewed(self) -> TaskInstance:
        """The task instance whose images are under review."""
        asking = self.question.ti
        map_index = asking.map_index if self.subject.map_index is None else self.subject.map_index
        return TaskInstance(asking.dag_id, asking.run_id, self.subject.task_id, map_index)

    @property
    def other_params(self) -> dict[str, Any]:
        """The form's other params with their values; Airflow expects all of them back."""
        return {name: param["value"] for name, param in self.question.params.items() if name != PARAM}

    def items(self, images: list[GalleryImage], *, first: int, most: int) -> list[ReviewItem]:
        """
        Return a part of the images, with the verdicts of the answer, if there is one.

        :param first: index of the first image
        :param most: maximum number of images
        """
        verdicts = {(each.prompt_index, each.image_index): each for each in self._verdicts()}
        return [
            ReviewItem(number, image, verdicts.get((image.prompt_index, image.image_index)))
            for number, image in enumerate(images[first : first + most], start=first + 1)
        ]

    def _verdicts(self) -> list[Verdict]:
        try:
            return read_verdicts(self.question.params_input) if self.question.is_answered else []
        except ValueError:  # an answer sent without this page; the next task reports what is wrong with it
            return []


def find_review(question: Question, *, can_answer: bool) -> ReviewPage | None:
    """Return the review that a human-in-the-loop task asks for; ``None`` if it asks for something else."""
    subject = read_subject(question.params)
    return ReviewPage(question, subject, can_answer) if subject else None
