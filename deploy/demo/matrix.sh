# shellcheck shell=bash
# shellcheck disable=SC2154 # cluster, mysql and the colours are run.sh's
# Who reaches whom: real connections from every client to every server, over IPv4 and IPv6.

rows=(web app db bastion stranger office internet)
columns=(web:80 web:443 web:22 app:22 db:3306 service:3306 db:22 bastion:22 stranger:80)

declare -A namespace_of=([web]=shop [app]=shop [db]=shop [bastion]=shop [stranger]=elsewhere)
declare -A pod_of=() addresses_of=() cell=() earlier=()

# Where everybody is now: names of pods, and both addresses of each and of the Service.
locate() {
	local name namespace line
	for name in "${!namespace_of[@]}"; do
		namespace=${namespace_of[$name]}
		line=$(kubectl --namespace "$namespace" get pods --selector "tier=$name" \
			--field-selector status.phase=Running --output json |
			jq --raw-output '[.items[] | select(.metadata.deletionTimestamp == null)][0]
				| .metadata.name + " " + ([.status.podIPs[].ip] | join(" "))')
		pod_of[$name]=${line%% *}
		addresses_of[$name]=${line#* }
	done
	addresses_of[service]=$(kubectl --namespace shop get service db --output jsonpath='{.spec.clusterIPs[*]}')
}

# reach ROW TARGET…: one line "TARGET RESULT" for each, from that row's place in the network.
reach() {
	local row=$1 target ipv4=() ipv6=()
	shift
	case $row in
	office) "$cluster/outside" "$cluster/probe" many --timeout "$patience" "$@" ;;
	internet)
		# Outside clients use the office's addresses unless told otherwise, one family at a time.
		for target; do
			if [[ $target == *'['* ]]; then ipv6+=("$target"); else ipv4+=("$target"); fi
		done
		"$cluster/outside" "$cluster/probe" many --timeout "$patience" --source 198.51.100.7 "${ipv4[@]}"
		"$cluster/outside" "$cluster/probe" many --timeout "$patience" --source 2001:db8:ffff::7 "${ipv6[@]}"
		;;
	*) "$cluster/pod" "${namespace_of[$row]}/${pod_of[$row]}" "$cluster/probe" many --timeout "$patience" "$@" ;;
	esac
}

# A denied packet is dropped without a word, so "no" takes this long.
patience=700ms

# Whether a cell makes sense: nobody asks itself, and a Service's virtual address means nothing outside the cluster.
asks() {
	local row=$1 server=${2%:*}
	[[ $row != "$server" && $row:$server != db:service && $row:$server != @(office|internet):service ]]
}

# Fills cell[row>column] with yes, no, v4 or v6.
measure() {
	local row column address text result scratch name pids=()
	local -A answer=()
	locate
	for name in "${!cell[@]}"; do earlier[$name]=${cell[$name]}; done
	scratch=$(mktemp -d)
	for row in "${rows[@]}"; do
		local targets=()
		for column in "${columns[@]}"; do
			asks "$row" "$column" || continue
			for address in ${addresses_of[${column%:*}]}; do
				[[ $address != *:* ]] || address="[$address]"
				targets+=("tcp:$address:${column#*:}")
			done
		done
		reach "$row" "${targets[@]}" >"$scratch/$row" &
		pids+=($!)
	done
	for name in "${pids[@]}"; do wait "$name" || fail "a probe could not run"; done

	for row in "${rows[@]}"; do
		answer=()
		while read -r text result _; do answer[$text]=$result; done <"$scratch/$row"
		for column in "${columns[@]}"; do
			cell["$row>$column"]=""
			asks "$row" "$column" || continue
			local v4=no v6=no
			for address in ${addresses_of[${column%:*}]}; do
				if [[ $address == *:* ]]; then
					[[ ${answer["tcp:[$address]:${column#*:}"]} != open ]] || v6=yes
				else
					[[ ${answer["tcp:$address:${column#*:}"]} != open ]] || v4=yes
				fi
			done
			case $v4$v6 in
			yesyes) cell["$row>$column"]=yes ;;
			nono) cell["$row>$column"]=no ;;
			yesno) cell["$row>$column"]=v4 ;;
			noyes) cell["$row>$column"]=v6 ;;
			esac
		done
	done
	rm -r "$scratch"
}

# Prints the cells; one that differs from the last matrix is marked.
show() {
	local row column value changes=0
	echo "  yes: over IPv4 and IPv6   .: over neither   blank: not tried"
	printf '  %-23s' 'from \ to'
	for column in "${columns[@]}"; do print_cell "$column" "$column"; done
	echo
	for row in "${rows[@]}"; do
		printf '  %-23s' "$(whois "$row")"
		for column in "${columns[@]}"; do
			value=${cell["$row>$column"]}
			if [[ -n ${earlier["$row>$column"]:-} && $value != "${earlier["$row>$column"]}" ]]; then
				changes=$((changes + 1))
				print_cell "$column" "${value/no/.} <--" "$bold"
			elif [[ $value == yes ]]; then
				print_cell "$column" yes "$green"
			else
				print_cell "$column" "${value/no/.}"
			fi
		done
		echo
	done
	((${#earlier[@]} == 0)) || echo "  $changes cells changed"
}

# print_cell COLUMN TEXT [COLOUR]: as wide as the column's name, or as what a changed cell holds.
print_cell() {
	local width=$((${#1} > 7 ? ${#1} : 7))
	printf ' %s%-*s%s ' "${3:-}" "$width" "$2" "${3:+$plain}"
}

whois() {
	case $1 in
	office) echo "office   203.0.113.10" ;;
	internet) echo "internet 198.51.100.7" ;;
	*) printf '%-8s %s' "$1" "${addresses_of[$1]%% *}" ;;
	esac
}

# allowed ROW COLUMN: what the three rule sets say. Pods without a group are nobody's business, whoever comes.
allowed() {
	case $2:$1 in
	web:80:* | web:443:* | web:22:office) ;;
	app:22:bastion | db:22:bastion | bastion:22:office) ;;
	db:3306:app | service:3306:app) [[ $mysql == allowed ]] ;;
	stranger:80:*) ;;
	*) return 1 ;;
	esac
}
everything() { :; }

# expect PREDICATE: stops the demo when a cell is not what it should be.
expect() {
	local row column want wrong=()
	for row in "${rows[@]}"; do
		for column in "${columns[@]}"; do
			asks "$row" "$column" || continue
			want=no
			! "$1" "$row" "$column" || want=yes
			[[ ${cell["$row>$column"]} == "$want" ]] ||
				wrong+=("$row to $column is ${cell["$row>$column"]}, should be $want")
		done
	done
	if ((${#wrong[@]})); then
		printf '  WRONG: %s\n' "${wrong[@]}"
		fail "the matrix is not what the rules say"
	fi
}
