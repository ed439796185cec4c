"""`qruntime compare`: how far the outputs of two models lie apart on the same inputs."""

from __future__ import annotations

import argparse

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import Subparsers, add_command, add_inputs, add_json, add_threads
from qruntime.cli.fidelity import add_comparison, judge, verdict_fields, verdict_lines
from qruntime.display.text import printable


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "compare",
        "run two models on the same inputs and compare their outputs; exit code 1 when they lie too far apart",
        "qruntime compare model.onnx model.int8.onnx --npz recorded/ --mask attention_mask --snr 25",
    )
    parser.add_argument("reference", help="the ONNX model to compare with")
    parser.add_argument("candidate", help="the ONNX model in question")
    add_comparison(parser)
    add_inputs(parser)
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    with terminal.progress("Loading"):
        reference = qruntime.load(arguments.reference, threads=arguments.threads)
        candidate = qruntime.load(arguments.candidate, threads=arguments.threads)
    with terminal.progress("Running"):
        verdict = judge(reference, candidate, arguments)
    files = {"reference": arguments.reference, "candidate": arguments.candidate}
    if arguments.json:
        terminal.json_result("compare", files | verdict_fields(verdict, arguments))
    else:
        heading = terminal.heading(f"{printable(arguments.reference)} against {printable(arguments.candidate)}")
        terminal.result([heading, "", *verdict_lines(verdict, arguments)])
    if not verdict.passed:
        terminal.note(
            f"list the layers with the noisiest weights: qruntime inspect {arguments.candidate}; "
            "then convert with --per-channel, or leave some as float with --exclude"
        )
    return 0 if verdict.passed else 1
