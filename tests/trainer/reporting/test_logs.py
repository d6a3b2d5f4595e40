"""Records reach the terminal and train.log, each line with host and rank, and other ranks only say what went wrong."""

import logging
import warnings

import pytest

from stagecoach.trainer.cli import json_output, run_main
from stagecoach.trainer.reporting.logs import HELD, log_to_run, log_to_terminal

log = logging.getLogger("stagecoach.trainer.anything")


def test_progress_is_on_the_standard_output_and_warnings_are_on_the_standard_error(capsys):
    log_to_terminal()
    log.info("step 3")
    log.warning("a sample is damaged")
    logging.getLogger("another.package").info("chatter")
    captured = capsys.readouterr()
    assert captured.out == "step 3\n"
    assert captured.err == "warning: a sample is damaged\n"


def test_a_run_outlives_whoever_read_its_output(tmp_path, monkeypatch, capsys):
    class Gone:
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    log_to_terminal()
    log_to_run(tmp_path)
    monkeypatch.setattr("sys.stdout", Gone())
    log.info("step 3")
    assert "step 3" in (tmp_path / "train.log").read_text()


def test_each_line_of_train_log_has_time_host_and_rank(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    log_to_run(tmp_path / "run")
    log.info("before the folder is made")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    log.info("a table\n  of two lines")
    log.warning("bad")
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert [line[20:] for line in lines] == [
        "node7 rank 0 before the folder is made",
        "node7 rank 0 a table",
        "node7 rank 0   of two lines",
        "node7 rank 0 WARNING bad",
    ]


def test_warnings_of_python_and_the_traceback_of_a_crash_are_in_train_log(tmp_path, capsys):
    def crash():
        log_to_run(tmp_path)
        warnings.warn("deprecated by someone", stacklevel=1)
        raise RuntimeError("boom")

    with pytest.raises(SystemExit) as caught:
        run_main(crash)
    assert caught.value.code == 1
    text, shown = (tmp_path / "train.log").read_text(), capsys.readouterr().err
    for words in ("deprecated by someone", "Traceback (most recent call last)", "RuntimeError: boom"):
        assert words in text
        assert words in shown
    assert all(" rank 0 " in line for line in text.splitlines())


def test_a_warning_that_is_repeated_in_each_step_is_said_once(capsys):
    log_to_terminal()
    for step in range(3):
        with warnings.catch_warnings():  # which makes Python forget what it has said
            warnings.simplefilter("always")
            warnings.warn("this function is deprecated", FutureWarning, stacklevel=1)
            logging.getLogger("py.warnings").warning("step %d", step)
    said = capsys.readouterr().err
    assert said.count("FutureWarning: this function is deprecated") == 1
    assert said.count("step ") == 3


def test_the_sentence_of_a_users_mistake_is_in_the_train_log_of_an_earlier_run_and_makes_no_folder(tmp_path):
    from stagecoach.data.files import check_directory

    (tmp_path / "used").mkdir()
    for folder in ("used", "new"):

        def refuse(folder=folder):
            log_to_run(tmp_path / folder)
            check_directory(tmp_path)

        with pytest.raises(SystemExit):
            run_main(refuse)
    assert "ERROR" in (tmp_path / "used" / "train.log").read_text()
    assert not (tmp_path / "new").exists()


def test_of_what_is_said_before_the_folder_is_made_the_newest_lines_are_kept_and_written_at_the_latest_at_the_end(
    tmp_path,
):
    log_to_run(tmp_path / "run")
    for i in range(HELD + 3):
        log.info("line %s", i)
    (tmp_path / "run").mkdir()
    logging.getLogger().handlers[-1].close()
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert (len(lines), lines[0].split()[-1], lines[-1].split()[-1]) == (HELD, "3", str(HELD + 2))


def test_another_rank_shows_errors_alone_and_appends_them_where_the_folder_is_shared(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    (tmp_path / "shared").mkdir()
    for folder in ("shared", "elsewhere"):
        log_to_terminal()
        log_to_run(tmp_path / folder)
        log.info("progress")
        log.warning("as on every rank")
        log.error("it broke")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error on rank 3: it broke\n" * 2
    assert (tmp_path / "shared" / "train.log").read_text().endswith(" rank 3 ERROR it broke\n")
    assert not (tmp_path / "elsewhere").exists()


def test_under_json_records_leave_the_standard_output_alone(capfd):
    log_to_terminal()
    with json_output(True) as emit:
        log.info("progress")
        emit({"a": 1})
    captured = capfd.readouterr()
    assert captured.out == '{"a": 1}\n'
    assert "progress" in captured.err
