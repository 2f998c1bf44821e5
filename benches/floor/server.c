/* The server of the row of ports: the same program on the host and in containers. It listens on the port that it is told,
 * or on the socket that it was given (LISTEN_FDS), and answers one connection after the other by its first byte:
 *   c  a byte back
 *   i  everything is read, then a byte back
 *   o  as many MiB as the next byte says are written */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[128 << 10];

int main(int count, char **arguments) {
    int listener = 3;
    if (getenv("LISTEN_FDS") == NULL) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[1]))};
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int on = 1;
        listener = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (count != 2 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
            perror("listen");
            return 1;
        }
    }
    puts("listening");
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        unsigned char wanted[2] = {0, 0};
        if (client < 0 || read(client, wanted, 1) != 1) {
            close(client);
            continue;
        }
        if (wanted[0] == 'i')
            while (read(client, buffer, sizeof buffer) > 0)
                ;
        if (wanted[0] == 'o' && read(client, wanted + 1, 1) == 1)
            for (long left = (long)wanted[1] << 20; left > 0;) {
                ssize_t written = write(client, buffer, sizeof buffer);
                if (written <= 0)
                    break;
                left -= written;
            }
        else if (write(client, "x", 1) != 1)
            perror("write");
        close(client);
    }
}
