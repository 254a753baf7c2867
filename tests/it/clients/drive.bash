# drive.bash SOCKET: a question a line on stdin, `view=lookup&to=…`, after `ready` an answer a line on stdout, both as forms.
. "${BASH_SOURCE[0]%/*}/../../../clients/curl/sidetone.bash"
SIDETONE_SOCKET=$1

field() { [[ $1 =~ \"$2\":\"([^\"]*)\" ]] && printf '%s' "${BASH_REMATCH[1]}"; }

echo ready
while IFS= read -r line; do
    IFS='&' read -ra pairs <<<"$line"
    call=() view='' to='' json='' answered=0
    for pair in "${pairs[@]}"; do
        printf -v value %b "${pair//%/\\x}"
        case $value in
            view=*) view=${value#*=} ;;
            to=*) to=${value#*=} ;;
            *) call+=("$value") ;;
        esac
    done
    if [ "$view" = lookup ]; then
        sidetone_lookup "$to" "${call[@]}" || answered=$?
    else
        json=$(
            sidetone_resolve "$to" "${call[@]}"
            printf '%s %s' "$?" "${sidetone[status]}"
        )
        read -r answered sidetone[status] <<<"${json##*$'\n'}"
        for name in language label system; do sidetone[$name]=$(field "$json" "$name"); done
        sidetone[prompt_ids]=$(field "$json" ids)
        sidetone[secret]=$(field "$json" default)
    fi
    kinds=([0]=answer [1]=refused [3]=unavailable)
    printf 'kind=%s' "${kinds[answered]}"
    for name in "${!sidetone[@]}"; do
        _sidetone_escape "${sidetone[$name]}"
        printf '&%s=%s' "$name" "$sidetone_escaped"
    done
    echo
done
