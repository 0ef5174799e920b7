"""Export a student to a folder that needs no raykd: a timm model, an ONNX file, or a torch.export program.

    python jobs/export.py runs/birds --to birds-timm --format timm
    python jobs/export.py runs/birds --to birds-onnx --format onnx --round 2
    python jobs/export.py some/student --to birds-torch --format torch --images photos

RUN is a campaign's folder, of which the last finished round's student is taken, or a student's folder. The model is
written, opened again as its users open it, and held against the student on 256 real images at batch 1, 2 and 7: when a
probability differs by more than 1e-4, or another class wins, nothing is left and the job fails. Beside the model are a
card (README.md, and card.json for programs) and predict.py, which needs only timm, onnxruntime or torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raykd import cli
from raykd.config import Section


class Options(Section):
    """What to export to what."""

    run: str = Field(
        description="campaign's folder (its last finished round), or a student's (give --images, too)",
        json_schema_extra=cli.POSITIONAL,
    )
    to: str = Field(description="folder to write; must not exist")
    format: Literal["timm", "onnx", "torch"] = Field(description="of the model")
    round: int | None = Field(None, description="of the campaign; else the last that is finished")
    images: str | None = Field(None, description="folder of images to hold the export against; else the campaign's")


def run(options: Options) -> dict[str, Any]:
    """Export, and say what came of it."""
    from raykd.export_folder import check_absent, export, find_run

    folder = check_absent(options.to)
    found = find_run(options.run, options.round, options.images)
    from raykd.models.export import check_installed

    check_installed(options.format)
    card = export(found, options.format, folder, options.images)
    gate = card["gate"]
    print(f"{found.student} -> {folder}: {card['weights']}, {card['bytes']:,} bytes, {card['backbone']}")
    print(
        f"held against the student on {gate['num_images']} images {gate['images']}: probabilities differ by "
        f"{gate['max_difference']:.1g} at most, and the likeliest class is the same"
    )
    if card.get("why"):
        print(f"by {card['exporter']}, as the newer exporter was not right: {card['why']}")
    return card


main = cli.step_job(run, Options, __doc__)

if __name__ == "__main__":
    main()
