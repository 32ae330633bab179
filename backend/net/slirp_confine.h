/*
 * What the process of a network in user space may still do, once it serves: Landlock for files, a seccomp filter for system
 * calls.
 */
#ifndef BACKEND_NET_SLIRP_CONFINE_H
#define BACKEND_NET_SLIRP_CONFINE_H

/*
 * For good, and for the calling thread: no new privileges; files are opened for reading only, and where the kernel knows
 * Landlock only below /etc and where resolv.conf may lead; sockets are TCP's, UDP's and ICMP echo's. A system call that is
 * not on the list, execve(2) among them, kills the process (SIGSYS). A negative errno if there is no filter: then
 * nothing may be served.
 */
int slirp_confine(void);

#endif
