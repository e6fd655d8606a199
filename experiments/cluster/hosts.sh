#!/usr/bin/env bash
# One process on each of some hosts, by ssh; waits for all of them, and ends them when it is ended.
# Run it again, with other hosts too, to go on with what is missing.
set -uo pipefail
hosts=(@{hosts})
folder=@{folder}
remote=(ssh -o BatchMode=yes)

stop() {
    trap '' INT TERM
    echo "ending the processes on ${hosts[*]}" >&2
    for k in "${!hosts[@]}"; do
        printf -v command 'kill $(cat %q)' "$folder/$k.pid"
        "${remote[@]}" "${hosts[k]}" "$command" </dev/null &
    done
    wait
    exit 130
}
trap stop INT TERM

# Of an earlier run: the numbers may be others' by now.
rm -f "$folder"/*.pid
started=()
for k in "${!hosts[@]}"; do
    log="$folder/$k-${hosts[k]}.log"
    echo "process $k of ${#hosts[@]} on ${hosts[k]}: $log"
    printf -v command 'echo $$ > %q && exec bash %q %q' \
        "$folder/$k.pid" "$folder/worker.sh" "$k/${#hosts[@]}"
    "${remote[@]}" "${hosts[k]}" "$command" </dev/null >>"$log" 2>&1 &
    started+=($!)
done

failed=0
for k in "${!hosts[@]}"; do
    status=0
    wait "${started[k]}" || status=$?
    rm -f "$folder/$k.pid"
    if [ "$status" != 0 ]; then
        failed=1
        echo "process $k on ${hosts[k]} ended with status $status: $folder/$k-${hosts[k]}.log" >&2
    fi
done
exit "$failed"
