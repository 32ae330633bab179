/*
 * What skep and the program skep-slirp agree on.
 */
#ifndef BACKEND_NET_SLIRP_H
#define BACKEND_NET_SLIRP_H

#define SLIRP_PROGRAM "skep-slirp" /* arguments: "open" or "closed", hostfwd's text */
#define SLIRP_SOCKET 3		   /* the file descriptor it finds its socket at */

/* A packet of this size is no frame but tells the MTU that the guest knows of (uint32_t); before the first it is 1500. */
#define SLIRP_CONTROL 4
#define SLIRP_MTU 65520 /* between the guest and the process; libslirp takes up to 65521 */

#endif
