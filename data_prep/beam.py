"""The same preparation through Apache Beam: on Dataflow, Flink, Spark, or this machine.

The steps are those of run.py; only who calls them differs, so the files come out the same. All that passes between
workers lies in the output directory, which every worker must reach (gs://, s3://, or a shared disk).

    bert-data shards 'gs://bucket/wiki/*.jsonl.gz' --tokenizer TOK --out gs://bucket/data --length 512 \\
        --beam='--runner=DataflowRunner --project=P --region=R --temp_location=gs://bucket/tmp'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bert_jax.errors import UserError
from bert_jax.text.manifest import Manifest
from data_prep import run


def prepare(
    patterns: Sequence[str], tokenizer_path: str, directory: str, job: run.Job, options: Sequence[str]
) -> Manifest:
    """Makes a data set in `directory` as run.prepare does, its tasks mapped by Beam.

    Args:
        patterns, tokenizer_path, directory, job: as run.prepare takes them. The tokenizer is read here, and copied
            to the directory for the workers.
        options: Beam's own command line.

    Raises:
        UserError: Beam is not installed, or what run.prepare raises; what a worker raises ends the pipeline in
            Beam's way.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("Apache Beam is not installed", remedy="pip install 'bert-jax[beam]'") from None

    def beam_map(function: Callable, begun: run.Begun, tasks: Sequence, what: str) -> list:
        with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = (
                pipeline
                | f"{what}: tasks" >> apache_beam.Create(list(tasks))
                | f"{what}: spread" >> apache_beam.Reshuffle()
                | what >> apache_beam.Map(_call, function, begun)
            )
        # Every task left its note in the directory: asked again, it only reads that.
        return [function(begun, task, _silent) for task in tasks]

    begun = run.begin(patterns, tokenizer_path, directory, job)
    if begun.done is not None:
        return begun.done
    return run.finish(begun, *run.make_all(begun, beam_map))


def _call(task, function: Callable, begun: run.Begun) -> None:
    function(begun, task, _silent)


def _silent(size: int) -> None:
    """Beam shows its own progress."""
