/* A load generator for streamed completions over HTTP/1.1: one thread, epoll, keep-alive connections.
 *
 *     arrivals (open loop: a schedule; closed loop: a free place) -> connection -> HTTP -> chunks -> SSE lines -> events
 *
 * Latencies of the open loop count from the moment a request was due, so a server that stalls cannot hide it. Every answer is
 * checked: status, an end by "[DONE]" and by HTTP, the number of tokens. Knows nothing of any server but the OpenAI format.
 *
 *     cc -O2 -o load load.c -lm && ./load --port 8000 --body body.json --rate 100 --seconds 10
 *
 * In the body, each "@@@@@@@@" becomes the request's number in eight digits. One JSON object goes to standard output.
 */
#include "answer.h"

/* ---- sending ---- */

static void write_request(struct conn *c) {
    while (c->sent < c->request.len) {
        ssize_t n = send(c->fd, c->request.at + c->sent, c->request.len - c->sent, MSG_NOSIGNAL);
        if (n < 0) break;
        c->sent += (size_t)n;
    }
    bool more = c->sent < c->request.len;               /* an error shows again, and better, when it is read */
    if (more != c->writing) watch(c, more ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    c->writing = more;
    if (!more) c->request.len = 0;
}

static void compose(struct conn *c) {
    char head[1024], digits[24];
    int n = snprintf(head, sizeof head,
                     "POST %s HTTP/1.1\r\nhost: %s:%d\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n"
                     "%s%s%scontent-length: %zu\r\n\r\n",
                     ask.path, ask.host, ask.port, ask.bearer[0] ? "authorization: Bearer " : "", ask.bearer,
                     ask.bearer[0] ? "\r\n" : "", body_text.len);
    c->request.len = 0;
    append(&c->request, head, (size_t)n);
    size_t from = c->request.len;
    append(&c->request, body_text.at, body_text.len);
    snprintf(digits, sizeof digits, "%08ld", c->number % 100000000);
    for (int i = 0; i < n_marks; i++) memcpy(c->request.at + from + marks[i], digits, MARK_LEN);
}

static struct conn *dial(void) {
    struct conn *c = calloc(1, sizeof *c);
    if (!c) die("memory");
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    found.opened++;
    if (++open_now > found.peak_open) found.peak_open = open_now;
    c->place = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&server_address, sizeof server_address) && errno != EINPROGRESS) c->problem = errno;
    watch(c, EPOLLOUT, EPOLL_CTL_ADD);                  /* a socket that failed at once is reported by epoll too */
    return c;
}

static void begin(struct conn *c, long number, ns_t due, ns_t now) {
    c->number = number;
    c->due = due;
    c->deadline = now + (ns_t)(ask.timeout * SECOND);
    c->part = HEAD;
    c->status = 0;
    c->chunked = c->sse = c->keep = c->done = c->skip_lf = c->error_event = c->bad = false;
    c->left = -1;
    c->content_events = 0;
    c->usage_completion = -1;
    c->sent = c->line.len = c->other.len = c->data.len = 0;
    compose(c);
    push(&flying, c);
    if (c->place == IDLE) {
        c->place = WAITING;
        write_request(c);
    }
}

static void start(ns_t due, ns_t now) {
    struct conn *c = resting.head;
    if (c) pull(&resting, c);
    else c = dial();
    c->reused = c->place == IDLE;
    record(&found.late, now - due);
    if (!found.first_sent) found.first_sent = due;
    found.last_sent = due;
    begin(c, found.sent++, due, now);
}

/* A kept connection that the server closed just when it was taken again: HTTP lets a client try once more on a new one. */
static void retry(struct conn *c) {
    long number = c->number;
    ns_t due = c->due;
    pull(&flying, c);
    hang_up(c);
    found.retried++;
    begin(dial(), number, due, now_ns());
}

static void connected(struct conn *c) {
    int problem = 0;
    socklen_t size = sizeof problem;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &problem, &size);
    if (c->problem) problem = c->problem;
    if (problem) { fail(c, CONNECT, strerror(problem)); return; }
    c->place = WAITING;
    c->writing = true;
    write_request(c);
}

static void closed(struct conn *c, int problem, ns_t now) {
    bool untouched = c->part == HEAD && !c->status && !c->line.len;
    if (c->reused && untouched) retry(c);
    else if (problem) fail(c, RESET, strerror(problem));
    else if (c->part == UNTIL_CLOSE) finish(c, now);
    else fail(c, CLOSED_EARLY, untouched ? "no answer" : "in the middle of an answer");
}

static void readable(struct conn *c) {
    static char buffer[READ_BYTES];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    int problem = n < 0 ? errno : 0;
    if (c->place == IDLE) {                             /* closed while nobody used it, or talking unasked */
        pull(&resting, c);
        hang_up(c);
        return;
    }
    ns_t now = now_ns();
    if (n <= 0) { closed(c, problem, now); return; }
    found.bytes += (uint64_t)n;
    take(c, buffer, (size_t)n, now);
}

/* ---- arrivals ---- */

static uint64_t random_bits(void) {                     /* splitmix64 */
    uint64_t z = ask.seed += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static ns_t next_interval(void) {
    double mean = SECOND / ask.rate;
    if (!ask.poisson) return (ns_t)mean;
    return (ns_t)(-log(1.0 - (double)(random_bits() >> 11) * 0x1p-53) * mean);
}

static void enqueue(ns_t due) {
    if (backlog_at + (size_t)backlog_n == backlog_room) {
        memmove(backlog, backlog + backlog_at, (size_t)backlog_n * sizeof *backlog);
        backlog_at = 0;
        if ((size_t)backlog_n * 2 >= backlog_room) {
            backlog_room = backlog_room ? 2 * backlog_room : 1024;
            if (!(backlog = realloc(backlog, backlog_room * sizeof *backlog))) die("memory");
        }
    }
    backlog[backlog_at + (size_t)backlog_n++] = due;
}

static void arm(ns_t at) {
    struct itimerspec when = {.it_value = {at / SECOND, at % SECOND}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL)) die("timerfd_settime");
}

struct schedule { ns_t begun, ends, next; long started; bool over; };

static bool may_start(const struct schedule *s) { return ask.requests < 0 || s->started < ask.requests; }

/* Everything that is due now. In the closed loop, places open evenly over the ramp. */
static void arrivals(struct schedule *s, ns_t now) {
    if (ask.rate > 0) {
        for (; may_start(s) && s->next < s->ends && s->next <= now; s->next += next_interval(), s->started++) enqueue(s->next);
        s->over = !may_start(s) || s->next >= s->ends;
        for (; backlog_n && (resting.head || open_now < ask.connections); backlog_n--) start(backlog[backlog_at++], now);
        return;
    }
    double share = ask.ramp > 0 ? (double)(now - s->begun) / (ask.ramp * SECOND) : 1;
    long places = share >= 1 ? ask.concurrency : (long)(share * ask.concurrency) + 1;
    s->over = !may_start(s) || now >= s->ends;
    for (; !s->over && flying.n < places && may_start(s); s->started++) start(now, now);
    s->next = share < 1 ? now + SECOND / 100 : now + SECOND / 4;
}

static void overdue(ns_t now) {
    while (flying.head && flying.head->deadline <= now) fail(flying.head, TIMEOUT, "no end of the answer in time");
}

static void handle(struct epoll_event *events, int n) {
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (!c) {
            uint64_t ticks;
            if (read(timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
        } else if (c->place == CONNECTING) connected(c);
        else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
        else if (c->writing) write_request(c);
    }
}

static long failures(void) {
    long sum = 0;
    for (int i = 0; i < FAILURES; i++) sum += found.failed[i];
    return sum;
}

static ns_t drive(void) {
    struct epoll_event events[MAX_EVENTS];
    struct schedule s = {.begun = now_ns()};
    ns_t told = s.next = s.begun;
    s.ends = s.begun + (ns_t)(ask.seconds * SECOND);
    for (;;) {
        ns_t now = now_ns();
        overdue(now);
        arrivals(&s, now);
        if (s.over && !flying.n && !backlog_n) return now - s.begun;
        if (ask.progress && now - told >= SECOND) {
            told = now;
            fprintf(stderr, "{\"s\": %.3f, \"ok\": %ld, \"failed\": %ld}\n", (double)(now - s.begun) / 1e9, found.ok, failures());
        }
        if (!s.over) arm(s.next);
        int n = epoll_wait(epoll_fd, events, MAX_EVENTS, 250);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        handle(events, n);
    }
}

/* ---- the account ---- */

static void print_histogram(const char *name, const struct histogram *h) {
    printf(" \"%s\": {\"n\": %lu, \"mean\": %.4f, \"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"max\": %.4f},\n", name,
           (unsigned long)h->n, h->n ? h->sum / (double)h->n / 1e6 : 0, quantile_ms(h, 0.5), quantile_ms(h, 0.9),
           quantile_ms(h, 0.99), quantile_ms(h, 0.999), (double)h->max / 1e6);
}

static double offered(void) {
    return found.sent > 1 ? (double)(found.sent - 1) * 1e9 / (double)(found.last_sent - found.first_sent) : 0;
}

/* The share of requests that ended well by the time the last one should have, going by the third quartile: where a queue grows,
 * latency grows until the end and a quarter of that growth is late. A constant delay does not touch it, up to a tenth of the time. */
static double kept_up(void) {
    double tenth = (double)(found.last_sent - found.first_sent) / 10;
    ns_t by = found.last_sent + (ns_t)fmin(quantile_ms(&found.e2e, 0.75) * 1e6, tenth);
    long n = 0;
    for (long i = 0; i < found.ok; i++) n += found.ends[i] <= by;
    return found.sent ? (double)n / (double)found.sent : 0;
}

static void print_account(ns_t wall) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("{\"seconds\": %.3f, \"sent\": %ld, \"ok\": %ld, \"errors\": %ld,\n \"failed\": {", (double)wall / 1e9, found.sent,
           found.ok, failures());
    for (int i = 0; i < FAILURES; i++) printf("%s\"%s\": %ld", i ? ", " : "", FAILURE_NAMES[i], found.failed[i]);
    printf("},\n \"status\": {");
    for (int i = 0, n = 0; i < MAX_STATUS; i++)
        if (found.status[i]) printf("%s\"%d\": %ld", n++ ? ", " : "", i, found.status[i]);
    printf("},\n \"first_error\": \"%s\",\n", found.first_error);
    printf(" \"offered_per_s\": %.3f, \"kept_up\": %.5f, \"achieved_per_s\": %.3f,\n", offered(), kept_up(), offered() * kept_up());
    printf(" \"events\": %ld, \"content_events\": %ld, \"completion_tokens\": %ld, \"prompt_tokens\": [%ld, %ld], \"bytes\": %lu,\n",
           found.events, found.content_events, found.completion_tokens, found.prompt_min, found.prompt_max,
           (unsigned long)found.bytes);
    printf(" \"connections\": {\"opened\": %ld, \"peak\": %ld, \"retried\": %ld},\n", found.opened, found.peak_open, found.retried);
    print_histogram("ttft_ms", &found.ttft);
    print_histogram("e2e_ms", &found.e2e);
    print_histogram("gap_ms", &found.gap);
    print_histogram("late_ms", &found.late);
    printf(" \"cpu_s\": %.3f}\n", (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
                                      (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6);
}

static void read_body(void) {
    FILE *file = fopen(ask.body, "rb");
    if (!file) die(ask.body);
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, file));) append(&body_text, part, n);
    fclose(file);
    for (char *at = body_text.at; at && (at = strstr(at, MARK)) && n_marks < MAX_MARKS; at += MARK_LEN)
        marks[n_marks++] = (size_t)(at - body_text.at);
}

static void prepare(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stderr, NULL, _IOLBF, 0);
    server_address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)ask.port)};
    if (inet_pton(AF_INET, ask.host, &server_address.sin_addr) != 1) { errno = EINVAL; die("--host takes an IPv4 address"); }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN};
    if (epoll_fd < 0 || timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e)) die("epoll");
    read_body();
}

static bool take_option(int key) {
    switch (key) {
    case 'h': ask.host = optarg; return true;
    case 'p': ask.port = atoi(optarg); return true;
    case 'u': ask.path = optarg; return true;
    case 'b': ask.body = optarg; return true;
    case 'a': ask.bearer = optarg; return true;
    case 'r': ask.rate = atof(optarg); return true;
    case 'c': ask.concurrency = atoi(optarg); return true;
    case 's': ask.seconds = atof(optarg); return true;
    case 'n': ask.requests = atol(optarg); return true;
    case 't': ask.tokens = atoi(optarg); return true;
    case 'T': ask.timeout = atof(optarg); return true;
    case 'R': ask.ramp = atof(optarg); return true;
    case 'C': ask.connections = atoi(optarg); return true;
    case 'S': ask.seed = strtoull(optarg, NULL, 10); return true;
    case 'P': ask.poisson = true; return true;
    case 'v': ask.progress = true; return true;
    default: return false;
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"path", 1, 0, 'u'}, {"body", 1, 0, 'b'}, {"bearer", 1, 0, 'a'},
        {"rate", 1, 0, 'r'}, {"concurrency", 1, 0, 'c'}, {"seconds", 1, 0, 's'}, {"requests", 1, 0, 'n'},
        {"tokens", 1, 0, 't'}, {"timeout", 1, 0, 'T'}, {"ramp", 1, 0, 'R'}, {"connections", 1, 0, 'C'},
        {"seed", 1, 0, 'S'}, {"poisson", 0, 0, 'P'}, {"progress", 0, 0, 'v'}, {0, 0, 0, 0}};
    bool good = true;
    for (int key; (key = getopt_long(argc, argv, "", options, NULL)) != -1;) good &= take_option(key);
    if (!good || optind != argc || !ask.body || (ask.rate > 0) == (ask.concurrency > 0)) {
        fputs("load: --body FILE and either --rate PER_SECOND [--poisson] or --concurrency N [--ramp SECONDS] are needed;\n"
              "  also --host --port --path --bearer --seconds --requests --tokens (0: any) --timeout --connections --seed "
              "--progress\n", stderr);
        return 2;
    }
    prepare();
    print_account(drive());
    return 0;
}
