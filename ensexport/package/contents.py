"""What a manifest says, put together from what is known of a packed ensemble. Plain values in, plain values out."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ensexport.errors import UsageError
from ensexport.package.cases import SampleCase
from ensexport.package.manifest import SCHEMA_VERSION
from ensexport.spec import Check, Plan, ValidationReport, json_number
from ensexport.version import __version__

_LIBRARIES = ("numpy", "onnx", "onnxscript", "torch")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")
_DATE = "%Y-%m-%dT%H:%M:%SZ"


def libraries() -> dict[str, str]:
    """Versions of what wrote and checked the files."""
    found = {"python": platform.python_version()}
    for name in (*_LIBRARIES, *_RUNTIMES):
        try:
            found["onnxruntime" if name in _RUNTIMES else name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def created() -> str | None:
    """The time of `SOURCE_DATE_EPOCH`, as ISO 8601 in UTC; None where it is not set, so that builds are reproducible.

    Raises:
        UsageError: It is no number of seconds.

    Source: https://reproducible-builds.org/docs/source-date-epoch/
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 11):
        raise UsageError(
            f"cannot read SOURCE_DATE_EPOCH {text!r}: expected seconds since 1970, a whole number.",
            hint="Unset it, or set it to `git log -1 --format=%ct`.",
        )
    return time.strftime(_DATE, time.gmtime(int(text)))


def validation_entry(report: ValidationReport, names: Mapping[str, str]) -> dict[str, Any]:
    """The proof in short: one row a file, provider, optimisation level and output.

    Args:
        report: Every comparison.
        names: Artifact as the report names it -> path in the package; comparisons of other files are left out.
    """
    checks = [check for check in report.checks if check.artifact in names]
    own = ValidationReport(tuple(checks), report.integer_inputs, report.members)
    whole = own.to_dict()
    return {
        "passed": whole["passed"],
        "members": whole["members"],
        "tolerance": whole["tolerance"],
        "max_error": whole["max_error"],
        "batches": sorted({check.batch for check in checks if check.batch is not None}),
        "seeds": sorted({check.seed for check in checks}),
        "top1": whole["top1"],
        "table": [_row(names, group) for group in _grouped(checks)],
    }


def _grouped(checks: Iterable[Check]) -> list[list[Check]]:
    groups: dict[tuple[str, ...], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.artifact, check.provider, check.optimization, check.output), []).append(check)
    return list(groups.values())


def _row(names: Mapping[str, str], checks: Sequence[Check]) -> dict[str, Any]:
    worst = ValidationReport(tuple(checks)).worst
    return {
        "file": names[worst.artifact],
        "provider": worst.provider,
        "optimization": worst.optimization,
        "output": worst.output,
        "comparisons": len(checks),
        "max_abs": json_number(max(check.max_abs for check in checks)),
        "max_rel": json_number(worst.max_rel),
        "bound": json_number(worst.bound),
        "passed": all(check.passed for check in checks),
    }


def plan_entry(plan: Plan) -> dict[str, Any]:
    """How the graph was made."""
    return {name: _plain(value) for name, value in asdict(plan).items()}


def _plain(value: Any) -> Any:
    """Lists for tuples, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return json_number(value)


def sample_entry(folder: str, case: SampleCase) -> dict[str, Any]:
    """Where a case lies and how it is judged."""
    return {
        "folder": folder,
        "source": case.source,
        "expected_from": case.expected_from,
        "batch": case.batch,
        "inputs": [{"path": f"{folder}/input_{index}.pb", "name": name} for index, name in enumerate(case.inputs)],
        "outputs": [
            {
                "path": f"{folder}/output_{index}.pb",
                "name": name,
                "bound": case.bounds[name],
                "member_axis": case.axes[name],
            }
            for index, name in enumerate(case.outputs)
        ],
    }


def member_entry(record: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """One member's entry.

    Args:
        record: What the files' metadata says of it.
        source: The loaded member; None where it did not come from a file.
    """
    entry = {name: record[name] for name in ("index", "name", "sha256", "weights_sha256")}
    return entry | {name: getattr(source, name, None) for name in ("container_key", "stripped_prefix")}


def make_manifest(
    metadata: Mapping[str, Any],
    *,
    members: Sequence[Mapping[str, Any]],
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    opset: int | None,
    plan: Plan,
) -> dict[str, Any]:
    """Put a manifest together, all but what differs between the packages of one run: layout, files, proof, samples.

    Args:
        metadata: What the models say of themselves.
        members: One entry a member.
        inputs: One entry an input of the files.
        outputs: One entry an output of the files.
        opset: Of the ONNX file; None without one.
        plan: How the graph was made.
    """
    date = created()
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "ensexport", "version": __version__},
        "libraries": libraries(),
        **({} if date is None else {"created": date}),
        "opset": opset,
        "n_members": metadata["n_members"],
        "member_axis": metadata["member_axis"],
        "members": [dict(member) for member in members],
        "inputs": [dict(entry) for entry in inputs],
        "outputs": [dict(entry) for entry in outputs],
        "dims": _plain(metadata["dims"]),
        "emit": _plain(metadata["emit"]),
        "member_weights": _plain(metadata["member_weights"]),
        "dtypes": _plain(metadata.get("dtypes")),
        "plan": plan_entry(plan),
    }
