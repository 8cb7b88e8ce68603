/* How hosts follow a set across failovers of Redis that lose a tail: cursors, deltas, epochs, offers, snapshots.
 *
 * Two servers, of which one is the master: what it acknowledges may or may not be replicated when the other one is promoted, and
 * it may go on acknowledging to hosts that are still with it. A mutation is one bit of a set; bits are made once and never
 * leave. Two hosts are with either server, behind by any number of deltas. Kept out: MACs, tombstones, expiry, pages.
 *
 * What must hold: when nothing is under way any more, both hosts hold what the master holds, though no delta says what it is to
 * be applied to but by its version; and all that a host ever held is there.
 *
 * With BY_RUN_ID a server that is promoted again in the same process begins no epoch, for its run id is the one it finds: that loses
 * bans, and spin must find how. The file `check` runs both.
 */

#define BITS 4       /* mutations */
#define FAILOVERS 2
#define EPOCHS 4     /* 1 to 3 */
#define VERSIONS 12

/* What a server has: a set's content, version, log (the bits of each delta), epoch, the version that each epoch began at. */
typedef server {
	byte set; byte version; byte epoch; byte began[EPOCHS]; bool known[EPOCHS]; byte log[VERSIONS]; byte was /* master, the how-manieth time */
};
typedef follower {
	byte at;       /* with which server: 0, 1; 2: none */
	byte set; byte version; byte epoch;
	bool gathered  /* has offered, and holds back nothing since */
};

server s[2];
follower h[2];
byte master = 0, made = 0, failovers = 0, newest = 1;
byte ever = 0; /* all that hosts ever held */

inline note(one) { ever = ever | h[one].set }

inline mutate(on, bit_) {
	s[on].version++;
	s[on].log[s[on].version] = bit_;
	s[on].set = s[on].set | bit_
}

/* The other server follows: it has all of the master up to some version, and nothing else. */
inline copy(from, to, upto) {
	d_step {
		s[to].set = 0;
		j = 1;
		do
		:: j <= upto -> s[to].log[j] = s[from].log[j]; s[to].set = s[to].set | s[from].log[j]; j++
		:: else -> break
		od;
		do
		:: j < VERSIONS -> s[to].log[j] = 0; j++
		:: else -> break
		od;
		s[to].version = upto;
		s[to].epoch = 0;
		j = 1;
		do
		:: j < EPOCHS ->
			s[to].known[j] = s[from].known[j] && s[from].began[j] <= upto;
			s[to].began[j] = s[from].began[j];
			if
			:: s[to].known[j] -> s[to].epoch = j
			:: else
			fi;
			j++
		:: else -> break
		od;
		j = 0
	}
}

/* The last version of an epoch that every later epoch had when it began. */
inline keptThrough(by, old) {
	d_step {
		kept = 255;
		j = old + 1;
		do
		:: j < EPOCHS ->
			if
			:: s[by].known[j] && s[by].began[j] < kept -> kept = s[by].began[j]
			:: else
			fi;
			j++
		:: else -> break
		od;
		if
		:: old == 0 || !s[by].known[old] -> kept = 0
		:: else
		fi;
		j = 0
	}
}

/* A host comes to a server: it goes on from its cursor, or is asked for what it holds and then given all. */
inline resume(who, to) {
	cursor = h[who].epoch;
	keptThrough(to, cursor);
	if
	:: h[who].version <= kept && h[who].version <= s[to].version && h[who].version > 0
	:: else ->
		j = h[who].set & ~s[to].set;
		if
		:: j -> mutate(to, j)
		:: else
		fi;
		j = 0;
		h[who].set = s[to].set;
		h[who].version = s[to].version
	fi;
	h[who].epoch = s[to].epoch;
	h[who].at = to;
	note(who)
}

init {
	byte j = 0, kept = 0, cursor = 0, k = 0, x = 0;
	atomic {
		s[0].epoch = 1; s[0].known[1] = true; s[0].was = 1;
		copy(0, 1, 0);
		h[0].epoch = 1; h[1].epoch = 1
	};
	do
	/* A mutation at the master, or at one that was deposed and doesn't know. */
	:: atomic { made < BITS -> x = master; if :: true :: s[1 - master].was -> x = 1 - master fi;
		if
		:: s[x].was && (x == master || s[x].epoch) -> mutate(x, 1 << made); made++
		:: else
		fi; x = 0 }
	/* A delta to a host that follows. */
	:: atomic { h[0].at < 2 && h[0].version < s[h[0].at].version && h[0].epoch == s[h[0].at].epoch ->
		h[0].version++; h[0].set = h[0].set | s[h[0].at].log[h[0].version]; note(0) }
	:: atomic { h[1].at < 2 && h[1].version < s[h[1].at].version && h[1].epoch == s[h[1].at].epoch ->
		h[1].version++; h[1].set = h[1].set | s[h[1].at].log[h[1].version]; note(1) }
	/* A failover: the other server has some of what the master has; the master goes on, unless it is told. */
	:: atomic { failovers < FAILOVERS ->
		failovers++;
		k = s[master].version;
		do
		:: k > 0 -> k--
		:: break
		od;
		copy(master, 1 - master, k);
		master = 1 - master; k = 0;
#ifdef BY_RUN_ID
		if
		:: s[master].was /* the same process as before: it finds its run id, and goes on in the epoch it finds */
		:: else -> newest++; s[master].epoch = newest; s[master].known[newest] = true; s[master].began[newest] = s[master].version
		fi;
#else
		newest++; s[master].epoch = newest; s[master].known[newest] = true; s[master].began[newest] = s[master].version;
#endif
		s[master].was = 1 }
	/* A host finds the master, when it will; until then it is with the one it was with. */
	:: atomic { h[0].at != master || h[0].epoch != s[master].epoch -> resume(0, master) }
	:: atomic { h[1].at != master || h[1].epoch != s[master].epoch -> resume(1, master) }
	/* Faults are over: all find the master, and take what it has. */
	:: atomic { made == BITS && failovers == FAILOVERS -> break }
	od;
	atomic {
		k = 0;
		do
		:: k < 2 ->
			x = 0;
			do
			:: x < 2 ->
				if
				:: h[x].at != master || h[x].epoch != s[master].epoch -> resume(x, master)
				:: else
				fi;
				do
				:: h[x].version < s[master].version -> h[x].version++; h[x].set = h[x].set | s[master].log[h[x].version]; note(x)
				:: else -> break
				od;
				x++
			:: else -> break
			od;
			k++
		:: else -> break
		od;
		assert(h[0].set == s[master].set);
		assert(h[1].set == s[master].set);
		assert((ever & ~s[master].set) == 0)
	}
}
