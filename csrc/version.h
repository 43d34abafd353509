// The one place where the version is written: core.cpp compiles it in, pyproject.toml reads it by a regular expression.
#define FASTLSTM_VERSION "0.1.0"
