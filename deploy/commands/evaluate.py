"""`drift evaluate`: how well detection and root-cause analysis do on data whose answers are known."""

import click

from deploy.commands.evaluate_drifts import drifts
from deploy.commands.evaluate_edges import edges
from deploy.commands.evaluate_gnn import gnn
from deploy.commands.evaluate_incidents import incidents
from deploy.commands.evaluate_rca import rca


@click.group()
def evaluate() -> None:
    """Measure detection on your own labelled history, and root causes on published faults."""


evaluate.add_command(drifts)
evaluate.add_command(edges)
evaluate.add_command(incidents)
evaluate.add_command(rca)
evaluate.add_command(gnn)
