#!/usr/bin/env bash
# For the first minutes that a GPU is there: what is here, tests, cuDNN, times, sanitizers, the most valuable first.
#
#     bench/gpu_first_minutes.sh [-w WHEEL]... [-o FOLDER] [-s SECONDS] [PART...]
#
# WHEEL: a built fastlstm, and what else is to be installed for this run alone; else what is installed. FOLDER: for the
# log and the results, which are named after the GPU, else $OUT, else bench/results. SECONDS: for all parts together
# (480); what a part leaves goes to the later ones. PART: some of here quick tests cudnn steps sanitizer choices graphs
# report. Environment: PYTHON, the interpreter; COMMIT, where there is no checkout to ask. Nothing is fetched. What is
# absent is named and skipped, and a part that fails does not end the run. The exit status is 1 if one failed, 77 if no
# GPU can be used, 2 if it was called wrongly.
# shellcheck disable=SC2329 # parts are called by their names
set -u

python=${PYTHON:-python3}
wheels=() folder=${OUT:-} total=480
while getopts w:o:s: option; do
    case $option in
    w) wheels+=("$(realpath "$OPTARG")") ;;
    o) folder=$OPTARG ;;
    s) total=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))

# Every part, in order, and how much of the time that is left it gets, beside those that come after it.
declare -A weights=([here]=8 [quick]=10 [tests]=22 [cudnn]=6 [steps]=28 [sanitizer]=18 [choices]=10 [graphs]=4 [report]=4)
parts=("$@")
((${#parts[@]})) || parts=(here quick tests cudnn steps sanitizer choices graphs report)
for part in "${parts[@]}"; do
    [ -n "${weights[$part]:-}" ] || { echo "no part is named $part: expected some of ${!weights[*]}" && exit 2; }
done
skipped=77 # the status of a part that cannot be here

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' -)
name=gpu-${gpu:-none}
root=$(realpath "$(dirname "$0")/..")
folder=$(realpath -m "${folder:-$root/bench/results}")
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$folder"
cd "$root" || exit 2
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # what else is installed there has no say in our tests

# COMMAND...: for the seconds that the part has (0 would be for ever). An interrupted pytest still says what failed.
limited() { timeout --signal=INT --kill-after=5 "$((limit > 0 ? limit : 1))" "$@"; }

# Warnings of a library that is newer than ours are no failures.
gpu_tests=("$python" -m pytest -m gpu -q -W default -p no:cacheprovider --tb=short --maxfail=20)
has() { "$python" -c "import $1" 2>/dev/null || { echo "absent: $1" && return "$skipped"; }; }
# Ends by itself: between two shapes, a little before its time.
timed() { limited "$python" bench/gpu.py "$1" --name "$name" --folder "$folder" --seconds $((limit * 9 / 10)); }

part_here() { limited "$python" bench/gpu_arrays.py; }
part_quick() { has pytest && limited "${gpu_tests[@]}" tests/test_cuda.py -k "small or primes"; }
part_tests() { has pytest && limited "${gpu_tests[@]}" tests/test_gpu.py tests/test_cuda.py tests/test_cuda_layer.py \
        tests/test_cuda_torch.py -k "not small"; }
part_cudnn() { has pytest && has torch && limited "${gpu_tests[@]}" tests/test_against_torch.py; }
part_steps() { timed steps; }
part_choices() { timed choices; }
part_graphs() { timed graphs; }

# Only our kernels, in few tests: they run a hundred times slower. Without its cache, torch's memory has bounds.
part_sanitizer() {
    local tool status failed=0 left=3 end=$((SECONDS + limit))
    has pytest || return
    command -v compute-sanitizer || { echo "absent: compute-sanitizer" && return "$skipped"; }
    for tool in memcheck racecheck synccheck; do
        limit=$(((end - SECONDS) / left--))
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited compute-sanitizer --tool "$tool" --kernel-name kns=fastlstm \
            --error-exitcode 9 --print-limit 20 "${gpu_tests[@]}" \
            tests/test_cuda.py -k "(small or tiles) and (algorithms or tensor_cores)"
        status=$?
        echo "$tool: $(verdict "$status")"
        ((status == 0)) || failed=$status
    done
    return "$failed"
}

part_report() {
    local found=("$folder/$name"-*.json)
    [ -e "${found[0]}" ] || { echo "absent: nothing was timed" && return "$skipped"; }
    limited "$python" bench/gpu_report.py "${found[@]}"
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
    local at part status gpu_status=0 failed=0 start later sum ends=()
    if ((${#wheels[@]})); then
        "$python" -m pip install --quiet --no-deps --no-index --target "$site" "${wheels[@]}" || return 1
    fi
    for at in "${!parts[@]}"; do
        part=${parts[at]} start=$SECONDS sum=0
        for later in "${parts[@]:at}"; do sum=$((sum + weights[$later])); done
        limit=$(((total - SECONDS) * weights[$part] / sum))
        printf '\n== %s (after %d s, for at most %d s)\n' "$part" "$SECONDS" "$limit"
        if [[ $gpu_status == [13] && $part != here && $part != report ]]; then
            echo "absent: a GPU that can be used"
            status=$skipped
        else
            "part_$part"
            status=$?
        fi
        if [ "$part" = here ]; then
            gpu_status=$status # 1: there is one that cannot be used, which is a failure
            ((status != 3)) || status=$skipped # there is none, which is not
        fi
        ends+=("$part: $(verdict "$status"), $((SECONDS - start)) s")
        echo "${ends[-1]}"
        ((status == 0 || status == skipped)) || failed=1
    done
    printf '\n== after %d s, in %s\n' "$SECONDS" "$folder"
    printf '%s\n' "${ends[@]}"
    if ((gpu_status == 3)); then echo "no GPU can be used: nothing was tested or timed" && return "$skipped"; fi
    return "$failed"
}

run_parts 2>&1 | tee "$folder/$name-log.txt"
exit "${PIPESTATUS[0]}"
