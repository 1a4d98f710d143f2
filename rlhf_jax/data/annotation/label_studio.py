"""Export of tasks to Label Studio, and import of its annotated tasks, as JSON.

The project has Label Studio's template Pairwise Classification, with further choices
for a tie and for each criterion (https://labelstud.io/templates/pairwise_comparison).
Known answers and repeats, which measure the annotators, are not exported: an imported
task is matched by id.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from rlhf_jax.data.annotation.answers import Answer
from rlhf_jax.data.annotation.tasks import Task, transcript
from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, checked
from rlhf_jax.data.records import CRITERIA

SIDES = {"left": "1", "right": "2", "tie": "tie"}  # values are those of `Task.seen`


def labeling_config(criteria: Sequence[str]) -> str:
    """Return the project's labelling interface as XML: an overall choice and one for
    each criterion."""
    rows = "\n".join(
        f"  <Header value={quoteattr(name.title())}/>\n"
        f'  <Choices name={quoteattr(name)} toName="conversation" '
        'choice="single-radio" showInline="true" required="true">\n'
        '    <Choice value="left"/><Choice value="tie"/><Choice value="right"/>\n'
        "  </Choices>"
        for name in criteria
    )
    return f"""<View>
  <Text name="conversation" value="$conversation"/>
  <Header value="Select the better response, or a tie"/>
  <Pairwise name="overall" toName="response_1,response_2"/>
  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em">
    <Text name="response_1" value="$response_1"/>
    <Text name="response_2" value="$response_2"/>
  </View>
  <Choices name="tie" toName="conversation" choice="multiple">
    <Choice value="tie"/>
  </Choices>
{rows}
</View>
"""


def export_tasks(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Return the tasks for a project; the response shown first is on the left."""
    return [
        {
            "data": {
                "task": task.id,
                "conversation": transcript(task.prompt),
                "response_1": task.shown[0],
                "response_2": task.shown[1],
            }
        }
        for task in tasks
    ]


def import_answers(
    exported: Any, tasks: dict[str, Task]
) -> tuple[list[Answer], Counter]:
    """Return the answers in a project's export (its format "JSON"), and counts of
    annotations left out, by reason. If an annotator annotated a task twice, the last
    annotation counts.

    Raises:
        RecordError: the object is not an export, or of other tasks; the message names
            the place.
    """
    if not isinstance(exported, list):
        raise RecordError("The export must be a list of tasks (Label Studio's 'JSON').")
    answers, left_out = {}, Counter()
    for number, row in enumerate(exported, start=1):
        try:
            record = checked(row)
            task = _task(record, tasks)
            for annotation in fields.objects(record, "annotations"):
                answer, reason = _answer(task, annotation)
                if answer is None:
                    left_out[reason] += 1
                    continue
                key = (answer.task, answer.annotator)
                left_out["annotated again by the same annotator"] += key in answers
                answers[key] = answer
        except RecordError as error:
            raise RecordError(f"task {number} of the export: {error}") from None
    return list(answers.values()), +left_out


def _task(record: dict, tasks: dict[str, Task]) -> Task:
    name = fields.text(fields.optional_object(record, "data") or {}, "task")
    if name not in tasks:
        raise RecordError(f"is {name[:80]!r}, which is not one of the tasks.", "task")
    return tasks[name]


def _answer(task: Task, annotation: dict) -> tuple[Answer | None, str]:
    """Convert an annotation to an answer, or return None and the reason."""
    chosen = {}
    for region in fields.objects(annotation, "result"):
        value = fields.optional_object(region, "value") or {}
        kind = fields.text(region, "type", default="")
        if kind == "pairwise":
            sides = [fields.text(value, "selected")]
        elif kind == "choices":
            sides = fields.texts(value, "choices")
        else:
            continue  # a control that the project's owner added
        name = fields.text(region, "from_name")
        if name in (*CRITERIA, "overall", "tie") and sides:
            if sides[0] not in SIDES:
                raise RecordError(f"must be one of {[*SIDES]}, not {sides[0]!r}.", name)
            chosen[name] = task.seen(SIDES[sides[0]])
    overall = [chosen.pop(name) for name in ("overall", "tie") if name in chosen]
    if annotation.get("was_cancelled"):
        overall, chosen = ["skip"], {}
    if len(overall) != 1:
        return None, "both a response and a tie" if overall else "no overall choice"
    answer = Answer(
        task.id,
        _annotator(annotation),
        overall[0],
        chosen or None,
        fields.seconds(annotation, "lead_time"),
        fields.text(annotation, "created_at", default=""),
    )
    return answer, ""


def _annotator(annotation: dict) -> str:
    """Return the annotator, whom exports name by number or by e-mail address."""
    user = annotation.get("completed_by")
    if isinstance(user, dict):
        user = user.get("email") or user.get("id")
    if isinstance(user, bool) or not isinstance(user, int | str):
        raise RecordError("must name the annotator.", "completed_by")
    return str(user)
