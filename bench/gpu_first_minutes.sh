#!/usr/bin/env bash
# For the first minutes that a GPU is there: what is here, tests, sanitizer, cuDNN, times, the most valuable first.
#
#     bench/gpu_first_minutes.sh [-w WHEEL] [-o FOLDER] [-s SECONDS] [PART...]
#
# WHEEL: a built fastlstm, else the installed one. FOLDER: for the log and the results, else $OUT, else
# bench/results/gpu-<gpu>-<date>. SECONDS: for all parts together (600), of which each has its share. PART: some of
# here quick tests sanitizer cudnn steps choices report. Environment: PYTHON, the interpreter; COMMIT, where there is no
# checkout to ask. Nothing is fetched. What is absent is named and skipped, a part that fails does not end the run, and
# the exit status is 1 if one did.
set -u

python=${PYTHON:-python3}
wheel="" folder=${OUT:-} total=600
while getopts w:o:s: option; do
    case $option in
    w) wheel=$(realpath "$OPTARG") ;;
    o) folder=$OPTARG ;;
    s) total=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
parts=("$@")
((${#parts[@]})) || parts=(here quick tests sanitizer cudnn steps choices report)
skipped=77 # the status of a part that cannot be here

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr 'A-Z ' 'a-z-')
root=$(realpath "$(dirname "$0")/..")
folder=$(realpath -m "${folder:-$root/bench/results/gpu-${gpu:-none}-$(date +%Y-%m-%d)}")
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$folder"
cd "$root" || exit 2
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # what else is installed there has no say in our tests

# PERCENT COMMAND...: with that share of the time. An interrupted pytest still says what failed.
limited() { timeout --signal=INT --kill-after=15 "$(share "$1")" "${@:2}"; }
share() { echo $((($1 * total + 99) / 100)); }

# Warnings of a library that is newer than ours are no failures.
gpu_tests=("$python" -m pytest -m gpu -q -W default -p no:cacheprovider --tb=short --maxfail=20)
has_pytest() { "$python" -c "import pytest" 2>/dev/null || { echo "absent: pytest" && return $skipped; }; }

part_here() { limited 5 "$python" bench/gpu_arrays.py; }
part_quick() { has_pytest && limited 10 "${gpu_tests[@]}" tests/test_cuda.py -k "small or primes"; }
part_tests() { has_pytest && limited 22 "${gpu_tests[@]}" tests/test_cuda*.py; }
part_cudnn() { has_pytest && limited 8 "${gpu_tests[@]}" tests/test_cuda_against_torch.py; }
part_steps() { limited 30 "$python" bench/gpu.py steps --folder "$folder" --seconds "$(share 25)"; }
part_choices() { limited 10 "$python" bench/gpu.py choices --folder "$folder" --seconds "$(share 7)"; }

# Only our kernels, in few tests: they run a hundred times slower. Without its cache, torch's memory has bounds.
part_sanitizer() {
    local tool status=0
    has_pytest || return
    command -v compute-sanitizer || { echo "absent: compute-sanitizer" && return $skipped; }
    for tool in memcheck racecheck synccheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited 5 compute-sanitizer --tool "$tool" --kernel-name kns=fastlstm \
            --error-exitcode 9 --print-limit 20 "${gpu_tests[@]}" \
            tests/test_cuda*.py -k "small and (algorithms or against)" || status=$?
        echo "$tool: status $status"
    done
    return $status
}

part_report() {
    local found
    found=$(ls "$folder"/steps.json "$folder"/choices.json 2>/dev/null)
    [ -n "$found" ] || { echo "absent: nothing was timed" && return $skipped; }
    # shellcheck disable=SC2086 # a name for each word
    limited 5 "$python" bench/gpu_report.py $found
}

verdict() {
    case $1 in
    0) echo "passed" ;;
    "$skipped") echo "skipped" ;;
    124 | 137) echo "FAILED: out of time" ;;
    *) echo "FAILED with status $1" ;;
    esac
}

run_parts() {
    local name status usable=0 failed=0 start ends=()
    [ -z "$wheel" ] || "$python" -m pip install --quiet --no-deps --no-index --target "$site" "$wheel" || failed=1
    for name in "${parts[@]}"; do
        start=$SECONDS
        printf '\n== %s (after %d s)\n' "$name" "$SECONDS"
        if [ "$name" != here ] && [ "$name" != report ] && ((usable)); then
            echo "absent: a GPU that can be used"
            status=$skipped
        else
            "part_$name"
            status=$?
        fi
        if [ "$name" = here ]; then
            usable=$status
            ((status != 3)) || status=$skipped # no GPU, which is no failure
        fi
        ends+=("$name: $(verdict $status), $((SECONDS - start)) s")
        echo "${ends[-1]}"
        ((status == 0 || status == skipped)) || failed=1
    done
    printf '\n== after %d s, in %s\n' "$SECONDS" "$folder"
    printf '%s\n' "${ends[@]}"
    return $failed
}

run_parts 2>&1 | tee "$folder/log.txt"
exit "${PIPESTATUS[0]}"
