# Asks sidetone how a call is to be handled. bash 4.3 or newer and curl, for AGI scripts, cron jobs and people.
#
#   . /usr/local/lib/sidetone.bash
#   sidetone_lookup "$number" event_type=door_open zone=Z1 zone=Z2
#   case $? in
#       0) [ "${sidetone[stale]}" = 0 ] || logger "answer is ${sidetone[staleness_ms]} ms old"
#          speak "${sidetone[language]}" "${sidetone[voice]}" ;;
#       1) hang_up "${sidetone[status]}" ;;      # sidetone says no: unknown_number, inactive_number, tenant_suspended, ...
#       *) speak "$default_language" ;;          # sidetone cannot say: timeout, not_ready, ...; never "no such number"
#   esac
#
# sidetone_resolve prints the full view as JSON, with include=credentials the credentials too: into a pipe, never into a log or argv.
# SIDETONE_SOCKET names another socket. Each question starts a curl: for more than a few calls a second take another client.

declare -gA sidetone=()

# TEXT: percent-encoded into sidetone_escaped. curl's own --data-urlencode writes a space as +, which sidetone takes as +.
_sidetone_escape() {
    local LC_ALL=C char code index
    sidetone_escaped=
    for ((index = 0; index < ${#1}; index++)); do
        char=${1:index:1}
        if [[ $char != [A-Za-z0-9._~-] ]]; then
            printf -v code %d "'$char"
            printf -v char '%%%02X' $((code & 255))
        fi
        sidetone_escaped+=$char
    done
}

# ROUTE NUMBER [name=value]...: the reply in sidetone_body; 0 yes, 1 no, 3 sidetone cannot say; ${sidetone[status]} says why.
_sidetone_ask() {
    local url=http://localhost$1 number=$2 pair code=0 reply head sidetone_escaped
    shift 2
    for pair in "to=$number" "$@"; do
        _sidetone_escape "${pair#*=}"
        url+="&${pair%%=*}=$sidetone_escaped"
    done
    sidetone=([status]=unreachable) sidetone_body=
    reply=$(curl -q --silent --noproxy '*' --connect-timeout 0.25 --max-time 1 --write-out '\n%{http_code}' \
        --unix-socket "${SIDETONE_SOCKET:-/run/sidetone/sidetone.sock}" \
        --globoff "$url") || code=$?
    if [ "$code" -eq 28 ]; then sidetone[status]=timeout; fi
    if [ "$code" -ne 0 ]; then return 3; fi
    sidetone_body=${reply%$'\n'*}
    head='^(status=|\{"status":")([a-z_]+)'
    if [[ $sidetone_body =~ $head ]]; then sidetone[status]=${BASH_REMATCH[2]}; fi
    case ${sidetone[status]} in
        ok) [ "${reply##*$'\n'}" = 200 ] || return 3 ;;
        unknown_number | inactive_number | tenant_suspended | invalid_number | bad_request) return 1 ;;
        *) return 3 ;;
    esac
}

# NUMBER [name=value]...: every field into the array `sidetone`.
sidetone_lookup() {
    local sidetone_body answered=0 pair value
    local -a pairs
    _sidetone_ask "/v1/lookup?format=form" "$@" || answered=$?
    IFS='&' read -ra pairs <<<"$sidetone_body"
    for pair in "${pairs[@]}"; do
        [[ $pair == *=* ]] || pair+='='
        value=${pair#*=}
        printf -v value %b "${value//%/\\x}"   # %41 -> \x41; the form holds no backslash
        if [ "$answered" -ne 3 ]; then sidetone[${pair%%=*}]=$value; fi
    done
    return "$answered"
}

# NUMBER [name=value]...: prints the full view.
sidetone_resolve() {
    local sidetone_body answered=0
    _sidetone_ask "/v1/resolve?format=json" "$@" || answered=$?
    if [ "$answered" -eq 0 ]; then printf '%s\n' "$sidetone_body"; fi
    return "$answered"
}
