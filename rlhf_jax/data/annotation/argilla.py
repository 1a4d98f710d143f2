"""Export of tasks to Argilla (version 2), and import of its answered records.

`settings` is for `rg.Settings.from_json`, `export_tasks` for
`dataset.records.from_json`, and `import_answers` reads what `dataset.records.to_json`
writes (https://docs.argilla.io/latest/reference/argilla/records/records/). That format
holds neither the time an answer took nor whether it is a draft: have drafts submitted.
Known answers and repeats, which measure the annotators, are not exported: an imported
record is matched to its task by id.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_jax.data.annotation.answers import Answer
from rlhf_jax.data.annotation.tasks import Task, transcript
from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, checked
from rlhf_jax.data.records import CRITERIA

LABELS = {"1": "Response 1", "2": "Response 2", "tie": "Tie"}


def settings(
    criteria: Sequence[str], *, guideline: str, annotators_per_task: int
) -> dict[str, Any]:
    """Return the dataset's settings: a question overall and for each criterion."""
    return {
        "guidelines": guideline,
        "fields": [
            {
                "name": name,
                "title": name.replace("_", " ").title(),
                "required": True,
                "settings": {"type": "text", "use_markdown": False},
            }
            for name in ("conversation", "response_1", "response_2")
        ],
        "questions": [
            {
                "name": name,
                "title": f"Which response is better: {name}?",
                "required": True,
                "settings": {
                    "type": "label_selection",
                    "options": [{"value": v, "text": t} for v, t in LABELS.items()],
                },
            }
            for name in (*criteria, "overall")
        ],
        "metadata": [],
        "vectors": [],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": annotators_per_task},
    }


def export_tasks(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Return the records to log into a dataset."""
    return [
        {
            "id": task.id,
            "fields": {
                "conversation": transcript(task.prompt),
                "response_1": task.shown[0],
                "response_2": task.shown[1],
            },
            "metadata": {},
            "suggestions": {},
            "responses": {},
            "vectors": {},
        }
        for task in tasks
    ]


def import_answers(
    exported: Any, tasks: dict[str, Task]
) -> tuple[list[Answer], Counter]:
    """Return the answers in a dataset's records, and counts of those left out, by
    reason.

    Suggestions come from a model, not a person, and are ignored.

    Raises:
        RecordError: the object is not an export, or of other tasks; the message names
            the place.
    """
    if not isinstance(exported, list):
        raise RecordError("The export must be a list of records (records.to_json).")
    answers, left_out = {}, Counter()
    for number, row in enumerate(exported, start=1):
        try:
            record = checked(row)
            name = fields.text(record, "id")
            if name not in tasks:
                raise RecordError(f"is {name[:80]!r}, not one of the tasks.", "id")
            for user, chosen in _by_user(record, tasks[name]).items():
                overall = chosen.pop("overall", None)
                if overall is None:
                    left_out["no overall choice"] += 1
                elif (name, user) in answers:
                    raise RecordError(f"is {name[:80]!r} as in another record.", "id")
                else:
                    answer = Answer(name, user, overall, chosen or None)
                    answers[name, user] = answer
        except RecordError as error:
            raise RecordError(f"record {number} of the export: {error}") from None
    return list(answers.values()), left_out


def _by_user(record: dict, task: Task) -> dict[str, dict[str, str]]:
    """Return each user's choices: {user: {question: "a", "b" or "tie"}}."""
    choices = defaultdict(dict)
    responses = record.get("responses")
    if not isinstance(responses, dict):
        raise RecordError(
            "must be an object; export with records.to_json.", "responses"
        )
    for question in {*CRITERIA, "overall"} & responses.keys():
        for response in fields.objects(responses, question):
            value = fields.choice(response, "value", tuple(LABELS))
            choices[fields.text(response, "user_id")][question] = task.seen(value)
    return choices
