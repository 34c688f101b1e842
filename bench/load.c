/* Load for the datapath. `load serve` answers on PORT until it is killed; the others ask it, for
 * SECONDS, and print one number:
 *
 *   load connect ADDRESS SECONDS    new TCP connections, one byte each way, by the second
 *   load packets ADDRESS SECONDS    packets of one UDP flow, the smallest, that arrive by the second
 *   load bytes ADDRESS SECONDS      bytes in packets of one UDP flow, the largest, likewise
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 7001, AT_ONCE = 32, BATCH = 64, SMALLEST = 18, LARGEST = 1472, EVENTS = 64 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct sockaddr_in at(const char *address) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (inet_pton(AF_INET, address, &a.sin_addr) != 1) fail(address);
    return a;
}

static int opened(int type) {
    int s = socket(AF_INET, type, 0);
    if (s < 0) fail("socket");
    return s;
}

static void watch(int epoll, int s, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = s};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, s, &e)) fail("epoll_ctl");
}

static void serve_datagrams(int udp, uint64_t *count) {
    static char data[BATCH][LARGEST];
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH];
    struct sockaddr_in peers[BATCH];
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){data[i], LARGEST};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &peers[i], .msg_namelen = sizeof peers[i], .msg_iov = &parts[i], .msg_iovlen = 1};
    }
    int got = recvmmsg(udp, messages, BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; i < got; i++) {
        if (data[i][0] == 'D') {
            ++*count;
            continue;
        }
        sendto(udp, count, sizeof *count, 0, (struct sockaddr *)&peers[i], sizeof peers[i]);
        if (data[i][0] == 'R') *count = 0;
    }
}

static void serve(void) {
    int epoll = epoll_create1(0), tcp = opened(SOCK_STREAM | SOCK_NONBLOCK), udp = opened(SOCK_DGRAM);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int on = 1, large = 1 << 22;
    uint64_t count = 0;
    setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large);
    if (bind(tcp, (struct sockaddr *)&any, sizeof any) || listen(tcp, 4096)) fail("TCP");
    if (bind(udp, (struct sockaddr *)&any, sizeof any)) fail("UDP");
    watch(epoll, tcp, EPOLLIN);
    watch(epoll, udp, EPOLLIN);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int s = events[i].data.fd;
            char first;
            if (s == udp) {
                serve_datagrams(udp, &count);
            } else if (s == tcp) {
                while ((s = accept4(tcp, NULL, NULL, SOCK_NONBLOCK)) >= 0) watch(epoll, s, EPOLLIN);
            } else if (recv(s, &first, 1, 0) != 1) {
                close(s);
            } else {
                send(s, &first, 1, MSG_NOSIGNAL);
            }
        }
    }
}

static void begin(int epoll, const struct sockaddr_in *to) {
    int s = opened(SOCK_STREAM | SOCK_NONBLOCK);
    /* Closed with a reset: no port waits for stray packets of a connection before. */
    struct linger reset = {1, 0};
    setsockopt(s, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(s, (const struct sockaddr *)to, sizeof *to) && errno != EINPROGRESS) fail("connect");
    watch(epoll, s, EPOLLOUT);
}

static double connections(const struct sockaddr_in *to, double seconds) {
    int epoll = epoll_create1(0);
    uint64_t done = 0;
    double began = now();
    for (int i = 0; i < AT_ONCE; i++) begin(epoll, to);
    while (now() - began < seconds) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, 100);
        for (int i = 0; i < ready; i++) {
            int s = events[i].data.fd;
            char byte = 'C';
            if (events[i].events & (EPOLLERR | EPOLLHUP)) {
                fprintf(stderr, "a connection failed\n");
                exit(1);
            }
            if (events[i].events & EPOLLOUT) {
                struct epoll_event e = {.events = EPOLLIN, .data.fd = s};
                send(s, &byte, 1, MSG_NOSIGNAL);
                epoll_ctl(epoll, EPOLL_CTL_MOD, s, &e);
            } else if (recv(s, &byte, 1, 0) == 1) {
                close(s);
                done++;
                begin(epoll, to);
            }
        }
    }
    return (double)done / (now() - began);
}

/* Ask until there is an answer: the count since the last 'R'. */
static uint64_t ask(int s, char what) {
    struct timeval patience = {0, 200000};
    char question[SMALLEST] = {what};
    uint64_t count;
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    for (int tries = 0; tries < 50; tries++) {
        send(s, question, sizeof question, 0);
        if (recv(s, &count, sizeof count, 0) == sizeof count) return count;
    }
    fprintf(stderr, "no answer\n");
    exit(1);
}

static double packets(const struct sockaddr_in *to, double seconds, size_t size) {
    static char data[LARGEST] = {'D'};
    struct iovec part = {data, size};
    struct mmsghdr messages[BATCH];
    int s = opened(SOCK_DGRAM);
    if (connect(s, (const struct sockaddr *)to, sizeof *to)) fail("connect");
    for (int i = 0; i < BATCH; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
    ask(s, 'R');
    double began = now();
    while (now() - began < seconds) sendmmsg(s, messages, BATCH, 0);
    double took = now() - began;
    usleep(50000);
    return (double)ask(s, 'Q') / took;
}

int main(int count, char **arguments) {
    if (count == 2 && !strcmp(arguments[1], "serve")) serve();
    if (count != 4) return 64;
    struct sockaddr_in to = at(arguments[2]);
    double seconds = atof(arguments[3]), found;
    if (!strcmp(arguments[1], "connect")) found = connections(&to, seconds);
    else if (!strcmp(arguments[1], "packets")) found = packets(&to, seconds, SMALLEST);
    else if (!strcmp(arguments[1], "bytes")) found = packets(&to, seconds, LARGEST) * LARGEST;
    else return 64;
    printf("%.1f\n", found);
    return 0;
}
