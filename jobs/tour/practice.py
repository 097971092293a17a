"""The chapters on networks in practice: the family of networks with its figures, and a served network that answers."""

from __future__ import annotations

import json

from jobs.demo.demo import served
from jobs.inspection.catalogs import ModelFacts, model_table
from jobs.inspection.side_by_side import FAMILIES, compare_models, draw_charts
from jobs.tour.exhibits import Shown, enlarged, short_count
from jobs.tour.workshop import Workshop
from library.imaging import codec


def family(workshop: Workshop) -> Shown:
    """Every model of the catalogue, with figures that are computed from the network itself."""
    workshop.command("models")
    workshop.command("models", f"--plot --out {workshop.folder / 'models'}")
    workshop.command("models", "resnet50 --layers")
    table = model_table()
    dated = [model for model in table if model.year is not None]
    compared = compare_models(None, lambda line: None)
    charts = draw_charts(compared)
    widest = max(table, key=lambda one: one.parameters)
    busiest = max(table, key=lambda one: one.multiply_adds)
    return Shown(
        {
            "rows": [
                (model, _size(model), short_count(model.parameters), short_count(model.multiply_adds))
                for model in table
            ],
            "differing": [model for model in table if model.differs],
            "count": len(table),
            "widest": widest,
            "widest_count": short_count(widest.parameters),
            "busiest": busiest,
            "busiest_count": short_count(busiest.multiply_adds),
            "first": dated[0],
            "families": list(FAMILIES),
            "accuracy": charts["accuracy_by_multiply_adds"].markup,
            "time_line": charts["time_line"].markup,
        },
        {"models": {model.name: [model.layers, model.parameters, model.multiply_adds] for model in table}},
    )


def _size(model: ModelFacts) -> str:
    channels, height, width = model.input_size
    return f"{width} x {height} x {channels}"


def serving(workshop: Workshop) -> Shown:
    """Serves LeNet-5 on this machine, sends it a picture, and shows the request and the answer."""
    data = workshop.digits()
    lenet = workshop.train("lenet", (), train_on=data / "train", test_on=data / "test")
    picture = workshop.raw_digits() / "7" / "0007.png"
    workshop.command("serve", f"{lenet.bundle}")
    answer = served(lenet.bundle, picture)
    ranked = [(one["class"], one["probability"]) for one in answer["predictions"][0]["classes"]]
    return Shown(
        {
            "picture": workshop.picture("asked", enlarged(codec.decode(picture.read_bytes()), 16)),
            "file": str(picture),
            "model": lenet.bundle.name,
            "answer": json.dumps(answer, indent=2),
            "ranked": ranked,
        },
        {"answer": answer},
    )
