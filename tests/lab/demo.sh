#!/usr/bin/env bash
# The whole chain on this machine, with public commands only: two hosts with two environments each,
# a broker, two agents, jobs that take their turns. Leaves nothing behind, also after Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ "$(id -u)" -eq 0 ] || exec sudo --preserve-env=PATH "$0" "$@"

bin=$PWD/.venv/bin
work=$(mktemp -d /tmp/testenv-demo.XXXXXX)
export TESTENV_BROKER=198.51.100.1:4730
export POWER_ON=$work/power-on
lab="$bin/python -m tests.lab exec --lab $work/lab"
pids=()

title() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; }

tear_down() {
    local status=$?
    trap - EXIT INT TERM
    title "tearing everything down"
    # Last started, first stopped: jobs, agents, broker, lab.
    local i
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill -TERM "${pids[i]}" 2>/dev/null && wait "${pids[i]}" 2>/dev/null || true
    done
    [ "$status" -eq 0 ] || tail -n 20 "$work"/*.log >&2
    rm -rf "$work"
    exit "$status"
}
trap tear_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Wait at most $1 seconds until the rest of the words succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || { printf 'not so in time: %s\n' "$*" >&2; exit 1; }
        sleep 0.3
    done
}
started=$SECONDS

title "a lab of two hosts, each with its own libvirt and Open vSwitch"
show "python -m tests.lab up --hosts te1,te2"
"$bin/python" -m tests.lab up --hosts te1,te2 --workdir "$work/lab" >"$work/lab.out" 2>"$work/lab.log" &
pids+=($!)
wait_for 180 sh -c "grep -qx ready '$work/lab.out' || ! kill -0 $! && exit 0; exit 1" 2>/dev/null
grep -qx ready "$work/lab.out" || { cat "$work/lab.log" >&2; exit 1; }
grep '^te' "$work/lab.out"

title "a broker on the CI network"
show "testenv-broker run --insecure --listen $TESTENV_BROKER"
$lab ci -- "$bin/testenv-broker" run --insecure --listen "$TESTENV_BROKER" 2>"$work/broker.log" &
pids+=($!)
wait_for 20 grep -q '^listening on' "$work/broker.log"
cat "$work/broker.log"

title "an agent on each host"
images=/var/lib/testenv/images
for number in 1 2; do
    host=te$number
    cat >"$work/$host.toml" <<TOML
[host]
name = "$host"
brokers = ["$TESTENV_BROKER"]
[public]
interface = "eth1"
address = "203.0.113.1$number/24"
seed_addresses = ["203.0.113.${number}20", "203.0.113.${number}29"]
[environments]
count = 2
[environments.seed]
kernel = "$images/vmlinuz"
initrd = "$images/seed.initrd"
cmdline = "console=ttyS0 quiet testenv.role=seed"
TOML
done
show "testenv-host --config te1.toml plan"
"$bin/testenv-host" --config "$work/te1.toml" plan
for host in te1 te2; do
    show "testenv-host --config $host.toml check && testenv-host --config $host.toml run"
    $lab "$host" -- "$bin/testenv-host" --config "$work/$host.toml" check
    $lab "$host" -- "$bin/testenv-host" --config "$work/$host.toml" run --drain-timeout 5 \
        2>"$work/$host.log" &
    pids+=($!)
done
offered() {
    [ "$($lab ci -- "$bin/testenv" status --json |
        jq '[.hosts[].report.environments[]? | select(.state == "ready")] | length')" = "$1" ]
}
wait_for 120 offered 4
show "testenv status"
$lab ci -- "$bin/testenv" status

# Whoever powers nodes on for the job below, with libvirt's own tools on the node's host.
mkfifo "$POWER_ON"
while read -r host node; do
    show "virsh start $node    # on $host"
    $lab "$host" -- virsh -q -c qemu:///system start "$node" </dev/null
done <>"$POWER_ON" &
pids+=($!)

title "three jobs take an environment each"
for job in 1 2 3; do
    show "testenv-client -n other-$job -- sleep 3600 &"
    $lab ci -- "$bin/testenv-client" -n "other-$job" -- sleep 3600 2>/dev/null &
    pids+=($!)
done
wait_for 30 offered 1

title "our job takes the last one; the next client has to wait for it"
show "testenv-client -n ours -- deploy-and-test.sh"
$lab ci -- "$bin/testenv-client" -n ours --report "$work/ours.json" -- tests/lab/deploy-and-test.sh &
ours=$!
pids+=("$ours")
wait_for 30 offered 0
show "testenv-client -n next -- sh -c 'echo ...' &"
$lab ci -- "$bin/testenv-client" -n next --report "$work/next.json" -- \
    sh -c 'echo "my turn, in $(jq -r .testenv.lease.environment "$TE_DATAFILE")"' &
next=$!
pids+=("$next")
wait_for 30 sh -c "$lab ci -- $bin/testenv status | grep -q 'lockenv .* 1 waiting'"
show "testenv status"
$lab ci -- "$bin/testenv" status
wait "$ours"
wait "$next"

title "timings"
for job in ours next; do
    jq -r --arg job "$job" '"\($job): \(.environment), waited \(.waited_s * 10 | round / 10) s,"
        + " ran \(.ran_s * 10 | round / 10) s, exit \(.exit_code)"' "$work/$job.json"
done
printf 'the whole demo took %d s\n' $((SECONDS - started))
