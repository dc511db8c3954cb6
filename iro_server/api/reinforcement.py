"""``method.reinforcement`` of a job, and the alignment job's config made from it: see docs/hyperparameters.md."""

from __future__ import annotations

from iro_server import JsonObject
from iro_server.alignment.definition import DEFAULT_OPTIONS, MAX_SUCCESSORS
from iro_server.api.closed_model import ClosedModel
from iro_server.api.errors import bad_request
from iro_server.api.reinforcement_options import RENAMED, Hyperparameters, IroOptions
from iro_server.graders.response_format import parse_response_format

SEARCH_OF_EFFORT = {"low": {"num_successors": 4}, "high": {"beam_width": 4, "num_successors": 8}}


class Reinforcement(ClosedModel):
    grader: JsonObject
    response_format: JsonObject | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    iro: IroOptions = IroOptions()

    def check_format(self) -> None:
        """400 for an invalid ``response_format``. A large schema takes a second, which would block an event loop."""
        param = "method.reinforcement.response_format"
        try:
            parse_response_format(self.response_format or {"type": "text"})
        except ValueError as error:
            raise bad_request(f"Invalid '{param}': {error}", param) from error

    def options(self) -> JsonObject:
        """The config fields that this method sets.

        ``iro`` overrides ``hyperparameters``, and those override the search of ``reasoning_effort``.
        ``compute_multiplier`` scales K, wherever it comes from.
        """
        hyperparameters = self.hyperparameters.set_fields()
        options: JsonObject = dict(SEARCH_OF_EFFORT.get(hyperparameters.get("reasoning_effort", "default"), {}))
        options |= {option: hyperparameters[name] for name, option in RENAMED.items() if name in hyperparameters}
        if "batch_size" in hyperparameters:  # at least one prompt of an iteration is held out of its fit
            options["prompts_per_iteration"] = max(2, hyperparameters["batch_size"])
        options |= self.iro.options()
        if "compute_multiplier" in hyperparameters:
            successors = options.get("num_successors", DEFAULT_OPTIONS.num_successors)
            options["num_successors"] = max(1, round(successors * hyperparameters["compute_multiplier"]))
        if self.response_format is not None:
            options["response_format"] = self.response_format
        return options

    def check_rows(self, max_rows: int) -> None:
        """400 where the job's search, which is its model's too, takes more than ``max_rows`` rows a prompt."""
        options = self.options()
        successors = options.get("num_successors", DEFAULT_OPTIONS.num_successors)
        rows = options.get("beam_width", DEFAULT_OPTIONS.beam_width) * successors
        message = None
        if rows > max_rows:
            message = f"beam_width * num_successors is {rows} rows, over {max_rows}"
        elif successors > MAX_SUCCESSORS:
            message = f"num_successors is {successors}, over {MAX_SUCCESSORS}"
        if message is not None:
            raise bad_request(message, f"method.reinforcement.{self._field_of_rows()}")

    def _field_of_rows(self) -> str:
        """The field to blame for too many rows."""
        if "compute_multiplier" in self.hyperparameters.set_fields():
            return "hyperparameters.compute_multiplier"
        options = self.iro.set_fields()
        if self.hyperparameters.reasoning_effort in SEARCH_OF_EFFORT and not options.keys() & {
            "beam_width",
            "num_successors",
        }:
            return "hyperparameters.reasoning_effort"
        return "iro.num_successors"
