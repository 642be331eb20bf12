"""Where compiled programs are kept."""

import jax
import pytest

from isnet_jax.runtime import compiler, sharding


@pytest.fixture
def no_directory():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_in_the_users_cache_by_kind_of_cpu(no_directory, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.enable_cache()
    expected = tmp_path / "isnet_jax" / f"compiled-{compiler.cpu_kind()}"
    assert jax.config.jax_compilation_cache_dir == str(expected)


def test_programs_of_an_accelerator_share_one_directory(no_directory, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    compiler.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "isnet_jax" / "compiled")


def test_a_directory_that_jax_was_told_stays(no_directory, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compiler.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_no_program_is_kept_without_a_home(no_directory, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiler.enable_cache()

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiler.Path, "home", no_home)
    compiler.enable_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_options_are_for_cpus_whose_compiler_knows_them(monkeypatch):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    options = compiler.options(mesh)
    assert options
    jax.jit(lambda x: x + 1, compiler_options=options)(1)
    monkeypatch.setitem(compiler._OPTIONS, "cpu", {"xla_cpu_option_of_another_version": "1", **options})
    assert compiler.options(mesh) == options
